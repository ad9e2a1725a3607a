package damage

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// How much is listed at most.
const (
	maxBlocks     = 1000
	maxBlockFiles = 100
)

// Device is a member of the pool.
type Device struct {
	DevID uint64
	Name  string // kernel name
	Path  string // as the kernel names it in its messages
}

// Locate finds the bad blocks that the messages of a scrub tell of, and the
// files that have them. It reads the stripes again in which they lie, because
// the messages do not tell the sectors. Call it before what a look found is
// repaired: of what has been, only the stripe can be told, or nothing at all
// where the message was left out.
//
// Corrected is what the kernel says to have corrected and what is no longer
// bad. Superblocks have Metadata and no logical address.
//
// With an error the damage is what could be found. Needs CAP_SYS_ADMIN.
func Locate(ctx context.Context, f *btrfs.Filesystem, devices []Device, messages []Message) (*Damage, error) {
	l := newLocator(ctx, f, devices)
	if err := l.findChunks(messages); err != nil {
		return &l.damage, err
	}
	for i := range messages {
		l.note(&messages[i])
	}
	for _, s := range l.order {
		if l.damage.Truncated && len(l.damage.Errors) == maxBlocks {
			break
		}
		if err := ctx.Err(); err != nil {
			l.fail(err)
			break
		}
		l.resolve(s)
	}
	return l.finish()
}

// LocateBlocks finds the files of blocks that Verify found on a device.
func LocateBlocks(ctx context.Context, f *btrfs.Filesystem, d Device, blocks []BadBlock) (*Damage, error) {
	l := newLocator(ctx, f, nil)
	for _, b := range blocks {
		if err := ctx.Err(); err != nil {
			l.fail(err)
			break
		}
		l.add(b.damaged(d))
	}
	return l.finish()
}

func (b *BadBlock) damaged(d Device) DamagedBlock {
	return DamagedBlock{Device: d.Name, DevID: d.DevID, Logical: b.Logical, Physical: b.Physical, Metadata: b.Metadata}
}

type locator struct {
	ctx        context.Context
	filesystem *btrfs.Filesystem
	devices    []Device
	chunks     []btrfs.Chunk // those of the messages, by logical address
	stripes    map[stripeKey]*stripe
	order      []*stripe
	subvolumes map[uint64]subvolume
	damage     Damage
	errs       []error
}

func newLocator(ctx context.Context, f *btrfs.Filesystem, devices []Device) *locator {
	return &locator{
		ctx: ctx, filesystem: f, devices: devices,
		stripes: make(map[stripeKey]*stripe), subvolumes: make(map[uint64]subvolume),
		damage: Damage{Errors: []DamagedBlock{}},
	}
}

// stripeKey is what the kernel scrubs at a time.
type stripeKey struct {
	devid, logical uint64
	physical       uint64 // of a superblock; also of a copy of dup
}

// stripe is what the messages say of one.
type stripe struct {
	stripeKey
	device   Device
	chunk    *btrfs.Chunk // nil of a superblock, or where it is gone
	metadata bool
	// corrected and uncorrectable are numbers of messages.
	corrected, uncorrectable int
	// exact are the blocks that messages name themselves.
	exact []uint64
}

func (l *locator) fail(err error) { l.errs = append(l.errs, err) }

func (l *locator) finish() (*Damage, error) {
	slices.SortStableFunc(l.damage.Errors, func(a, b DamagedBlock) int {
		for _, c := range []int{compare(a.Logical, b.Logical), compare(a.DevID, b.DevID), compare(a.Physical, b.Physical)} {
			if c != 0 {
				return c
			}
		}
		return 0
	})
	return &l.damage, errors.Join(l.errs...)
}

// findChunks keeps the chunks that have an address of the messages.
func (l *locator) findChunks(messages []Message) error {
	var addresses []uint64
	for i := range messages {
		if messages[i].Kind != SuperBlock {
			addresses = append(addresses, messages[i].Logical)
		}
	}
	if len(addresses) == 0 {
		return nil
	}
	slices.Sort(addresses)
	_, err := l.filesystem.WalkChunks(func(c *btrfs.Chunk) error {
		i, _ := slices.BinarySearch(addresses, c.Logical)
		if i < len(addresses) && addresses[i]-c.Logical < c.Length {
			copied := *c
			copied.Stripes = slices.Clone(c.Stripes)
			l.chunks = append(l.chunks, copied)
		}
		return nil
	})
	return err
}

func (l *locator) chunkOf(logical uint64) *btrfs.Chunk {
	for i := range l.chunks {
		if c := &l.chunks[i]; logical >= c.Logical && logical-c.Logical < c.Length {
			return c
		}
	}
	return nil
}

func (l *locator) deviceBy(is func(*Device) bool) Device {
	if i := slices.IndexFunc(l.devices, func(d Device) bool { return is(&d) }); i >= 0 {
		return l.devices[i]
	}
	return Device{}
}

// note sorts a message to the others of its stripe.
func (l *locator) note(m *Message) {
	var device Device
	if m.Device != "" {
		device = l.deviceBy(func(d *Device) bool { return d.Path == m.Device })
	} else if m.DevID != 0 {
		device = l.deviceBy(func(d *Device) bool { return d.DevID == m.DevID })
	}
	if m.Kind == SuperBlock {
		l.stripe(stripeKey{devid: device.DevID, physical: m.Physical}, device, nil).metadata = true
		return
	}
	chunk := l.chunkOf(m.Logical)
	base, physical := m.Logical, m.Physical
	if chunk != nil {
		into := (m.Logical - chunk.Logical) % stripeLength
		base -= into
		physical -= min(physical, into)
		copies, _, err := places(chunk, base)
		switch {
		case err != nil: // raid5 or raid6
		case m.Mirror > 0 && m.Mirror <= uint64(len(copies)):
			c := copies[m.Mirror-1]
			physical = c.physical
			device = l.deviceBy(func(d *Device) bool { return d.DevID == c.devid })
		case physical == 0:
			// Before 6.4 some messages do not tell it: of dup it is then the
			// first copy.
			if i := slices.IndexFunc(copies, func(c place) bool { return c.devid == device.DevID }); i >= 0 {
				physical = copies[i].physical
			}
		}
	}
	s := l.stripe(stripeKey{device.DevID, base, physical}, device, chunk)
	s.metadata = s.metadata || m.Metadata
	exact := m.Logical != base || m.Kind == TreeBlock
	switch m.Kind {
	case Corrected:
		s.corrected++
		exact = exact || m.Physical == 0 // so it was said before 6.4
	case Uncorrectable:
		s.uncorrectable++
		exact = exact || m.Physical == 0
	case FullStripe:
		s.uncorrectable++
	}
	if exact && !slices.Contains(s.exact, m.Logical) {
		s.exact = append(s.exact, m.Logical)
	}
}

func (l *locator) stripe(key stripeKey, device Device, chunk *btrfs.Chunk) *stripe {
	s := l.stripes[key]
	if s == nil {
		s = &stripe{stripeKey: key, device: device, chunk: chunk}
		l.stripes[key] = s
		l.order = append(l.order, s)
	}
	return s
}

// resolve adds the bad blocks of a stripe.
func (l *locator) resolve(s *stripe) {
	block := DamagedBlock{
		Device: s.device.Name, DevID: s.device.DevID, Logical: s.logical, Physical: s.physical,
		Metadata: s.metadata || s.chunk != nil && (s.chunk.Type == btrfs.Metadata || s.chunk.Type == btrfs.System),
	}
	corrected := s.corrected > 0 && s.uncorrectable == 0
	var bad []BadBlock
	verified := false
	if s.chunk != nil && s.device.Path != "" {
		var err error
		bad, err = VerifyRange(l.ctx, l.filesystem, s.chunk, s.device.DevID, s.device.Path, s.logical, s.logical+stripeLength)
		if err == nil {
			verified = true
		} else if !errors.Is(err, ErrParity) {
			l.fail(err)
		}
	}
	found := 0
	for _, b := range bad {
		// The other copy of dup is another stripe.
		if b.Physical-b.Logical != s.physical-s.logical {
			continue
		}
		found++
		l.add(b.damaged(s.device))
		s.exact = slices.DeleteFunc(s.exact, func(logical uint64) bool { return logical == b.Logical })
		corrected = corrected && b.Metadata
	}
	for _, logical := range s.exact {
		b := block
		b.Logical, b.Physical = logical, s.physical+logical-s.logical
		b.Corrected = s.uncorrectable == 0 && (s.corrected > 0 || verified)
		l.add(b)
	}
	if len(s.exact) > 0 || block.Metadata && found > 0 {
		return
	}
	switch {
	case found == 0:
	case s.corrected > 0 && found < s.corrected+s.uncorrectable:
		corrected = true // of others than those found
	default:
		return
	}
	b := block
	b.Corrected = corrected
	if s.chunk != nil {
		b.Length = min(stripeLength, s.chunk.Logical+s.chunk.Length-s.logical)
	}
	l.add(b)
}

// add adds a block, with its files.
func (l *locator) add(b DamagedBlock) {
	if len(l.damage.Errors) == maxBlocks {
		l.damage.Truncated = true
		return
	}
	if !b.Metadata {
		l.addFiles(&b)
	}
	l.damage.Errors = append(l.damage.Errors, b)
}

func (l *locator) addFiles(b *DamagedBlock) {
	type key struct{ subvolume, inode uint64 }
	seen := make(map[key]bool)
	sector := l.filesystem.SectorSize()
	for logical := b.Logical; logical < b.Logical+max(b.Length, 1); logical += sector {
		inodes, complete, err := l.filesystem.LogicalInodes(logical)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			continue // it is free, or metadata in a mixed block group
		}
		if err != nil {
			l.fail(err)
			return
		}
		if !complete {
			l.damage.Truncated = true
		}
		slices.SortFunc(inodes, func(x, y btrfs.Inode) int {
			for _, c := range []int{compare(x.Subvolume, y.Subvolume), compare(x.Number, y.Number), compare(x.Offset, y.Offset)} {
				if c != 0 {
					return c
				}
			}
			return 0
		})
		for _, inode := range inodes {
			k := key{inode.Subvolume, inode.Number}
			if seen[k] {
				continue
			}
			seen[k] = true
			if len(b.Files) == maxBlockFiles {
				l.damage.Truncated = true
				return
			}
			if file, ok := l.file(inode); ok {
				b.Files = append(b.Files, file)
			}
		}
	}
}

// subvolume is the path of one; gone where it is deleted.
type subvolume struct {
	path string
	gone bool
}

func (l *locator) file(inode btrfs.Inode) (DamagedFile, bool) {
	s, known := l.subvolumes[inode.Subvolume]
	if !known {
		path, err := l.filesystem.SubvolumePath(inode.Subvolume)
		s = subvolume{path: path, gone: errors.Is(err, unix.ENOENT)}
		if err != nil && !s.gone {
			l.fail(err)
		}
		l.subvolumes[inode.Subvolume] = s
	}
	if s.gone {
		return DamagedFile{}, false
	}
	path, err := l.filesystem.InodePath(inode.Subvolume, inode.Number)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		l.fail(err)
	}
	return DamagedFile{Subvolume: s.path, Path: path, Offset: inode.Offset, Inode: inode.Number}, true
}
