package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Paths are where the host's filesystems are seen: other than the defaults
// where the program runs in a container.
type Paths struct {
	Proc, Sys, Root string
}

// DefaultPaths are those of a program outside of any container.
func DefaultPaths() Paths { return Paths{Proc: "/proc", Sys: "/sys", Root: "/"} }

// Client reads the facts of the btrfs filesystems mounted on this machine.
// It is safe for concurrent use.
type Client struct {
	paths Paths

	mu     sync.Mutex
	disks  map[diskKey]disk // what never changes while a device has its name
	owners map[string]UUID  // where each device was found last, see resolveUUID
	// mounted are the filesystems of the last mount table, by Mount.Device.
	mounted map[string]UUID
}

type diskKey struct {
	path string
	uuid UUID
}

type disk struct{ name, model, serial string }

// NewClient returns a Client.
func NewClient(paths Paths) *Client {
	return &Client{paths: paths, disks: make(map[diskKey]disk), owners: make(map[string]UUID)}
}

// Mounts returns the btrfs filesystems of the machine, in order of UUID: those
// in the mount table, and those that only sysfs knows because they are mounted
// in another mount namespace. It opens no filesystem, but the mount table can
// wait for a disk: to name the subvolume of a mount, the kernel searches the
// trees of its filesystem (btrfs_show_options in fs/btrfs/super.c). With an
// error it still returns what it found.
func (c *Client) Mounts() ([]Mount, error) {
	// In a container the process of interest is the host's first one.
	process := "self"
	if c.paths.Root != "/" {
		process = "1"
	}
	mountinfo, err := readFile(filepath.Join(c.paths.Proc, process, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("find the mounted filesystems: %w", err)
	}
	mounts, err := parseMountinfo(mountinfo)
	uuids, _ := c.UUIDs() // without sysfs the mount table says what it can
	seen := make(map[UUID]bool, len(uuids))
	for i := range mounts {
		mounts[i].UUID = c.resolveUUID(&mounts[i], uuids)
	}
	c.rememberUUIDs(mounts, uuids)
	for i := range mounts {
		seen[mounts[i].UUID] = true
	}
	for _, u := range uuids {
		if !seen[u] {
			mounts = append(mounts, Mount{UUID: u})
		}
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int { return bytes.Compare(a.UUID[:], b.UUID[:]) })
	return mounts, err
}

// rememberUUIDs fills in the UUID of a mount whose device is not to be found
// any more, as when a disk drops off the bus: it is the one that it had, as
// long as sysfs knows that filesystem.
func (c *Client) rememberUUIDs(mounts []Mount, uuids []UUID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := make(map[string]UUID, len(mounts))
	for i := range mounts {
		m := &mounts[i]
		if known := c.mounted[m.Device]; m.UUID.IsZero() && slices.Contains(uuids, known) {
			m.UUID = known
		}
		now[m.Device] = m.UUID
	}
	c.mounted = now
}

// UUIDs returns the filesystems that are mounted, as sysfs has them. Mounts says
// more, and can wait for a disk that hangs: to name a subvolume in the mount table
// the kernel searches the trees of its filesystem (btrfs_show_options in
// fs/btrfs/super.c). Without the module btrfs there are none.
func (c *Client) UUIDs() ([]UUID, error) {
	dir, err := openSysfsDir(c.paths.Sys + "/fs/btrfs")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("find the mounted filesystems: %w", err)
	}
	defer dir.close()
	var uuids []UUID
	for _, name := range dir.list(".") {
		if u, err := ParseUUID(name); err == nil {
			uuids = append(uuids, u)
		}
	}
	if dir.err != nil {
		return uuids, fmt.Errorf("find the mounted filesystems: %w", dir.err)
	}
	return uuids, nil
}

// resolveUUID finds the filesystem that the device in the mount table belongs
// to; zero if sysfs does not tell.
func (c *Client) resolveUUID(m *Mount, uuids []UUID) UUID {
	name := c.kernelName(m.source)
	if name == "" {
		return UUID{}
	}
	has := func(u UUID) bool {
		var st unix.Stat_t
		return unix.Lstat(c.paths.Sys+"/fs/btrfs/"+u.String()+"/devices/"+name, &st) == nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// It most likely is where it was.
	if u, known := c.owners[name]; known && has(u) {
		return u
	}
	delete(c.owners, name)
	for _, u := range uuids {
		if has(u) {
			c.owners[name] = u
			return u
		}
	}
	return UUID{}
}

// kernelName returns the name of a block device node in /sys/class/block, or
// "" if it is none.
func (c *Client) kernelName(node string) string {
	var st unix.Stat_t
	if !strings.HasPrefix(node, "/") || unix.Stat(c.hostPath(node), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	var link [unix.PathMax]byte
	number := strconv.FormatUint(uint64(unix.Major(st.Rdev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(st.Rdev)), 10)
	n, err := unix.Readlink(c.paths.Sys+"/dev/block/"+number, link[:])
	if err != nil {
		return ""
	}
	return string(link[bytes.LastIndexByte(link[:n], '/')+1 : n])
}

func (c *Client) hostPath(path string) string {
	if c.paths.Root == "/" {
		return path
	}
	return filepath.Join(c.paths.Root, path)
}

// ErrUnmounted is returned by Open when none of the mount points leads to the
// filesystem: it was unmounted since, or is hidden beneath other mounts.
var ErrUnmounted = errors.New("not mounted here (any more)")

// Open opens the filesystem at the first of its mount points that can be
// opened and really is this filesystem, and returns that mount point. A mount
// that is hidden beneath another one is passed over.
func (c *Client) Open(m *Mount) (*Filesystem, string, error) {
	var hidden, failed error
	for _, p := range m.Points {
		f, err := OpenFilesystem(c.hostPath(p.Path))
		if err == nil {
			if err = c.verify(f, m, &p); err == nil {
				return f, p.Path, nil
			}
			err = errors.Join(err, f.Close())
		}
		if errors.Is(err, ErrUnmounted) || errors.Is(err, ErrNotBtrfs) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			hidden = errors.Join(hidden, err)
		} else {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return nil, "", failed
	}
	return nil, "", errors.Join(ErrUnmounted, hidden)
}

// verify makes sure that an open file is on the mount that the mount table
// named. In a container the mounts have other ids; there the UUID decides.
func (c *Client) verify(f *Filesystem, m *Mount, p *MountPoint) error {
	if !m.UUID.IsZero() && f.UUID() != m.UUID {
		return fmt.Errorf("%s holds filesystem %s now: %w", p.Path, f.UUID(), ErrUnmounted)
	}
	if c.paths.Root != "/" {
		return nil
	}
	var st unix.Statx_t
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return nil // before kernel 5.8
	}
	if st.Mnt_id != p.ID {
		return fmt.Errorf("%s is hidden beneath another mount: %w", p.Path, ErrUnmounted)
	}
	return nil
}

// ReadPool reads the facts of an open filesystem, all but the features and the
// chunks, at a cost that does not grow with the number of block groups (unless a block
// group type has several profiles, whose use the kernel sums on request).
//
// A device or file that cannot be read leaves its facts unknown; the error
// then tells which, and the pool is still good. The pool is nil only where
// nothing could be read.
func (c *Client) ReadPool(f *Filesystem, m *Mount, mountpoint string) (*Pool, error) {
	p := &Pool{
		UUID:       f.UUID(),
		Mountpoint: mountpoint,
		ReadOnly:   m.ReadOnly,
		Checksum:   f.checksum(),
		NodeSize:   Some(uint64(f.info.nodesize)),
		SectorSize: Some(uint64(f.info.sectorsize)),
	}
	if u, ok := f.MetadataUUID(); ok && u != p.UUID {
		p.MetadataUUID = u
	}
	var failed error
	if free, err := f.StatfsFree(); err != nil {
		failed = errors.Join(failed, err)
	} else {
		p.StatfsFree = Some(free)
	}
	dir, err := openSysfsDir(c.paths.Sys + "/fs/btrfs/" + p.UUID.String())
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	defer dir.close()
	c.readSysfs(dir, p)

	for i := range p.Devices {
		if err := c.readDevice(f, &p.Devices[i]); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	if slices.ContainsFunc(p.Spaces, func(s Space) bool { return len(s.Profiles) > 1 }) {
		failed = errors.Join(failed, readProfileSpaces(f, p.Spaces))
	}
	if op := p.ExclusiveOperation.Value; strings.HasPrefix(op, "balance") {
		targets, err := f.convertTargets()
		if err != nil && !errors.Is(err, unix.EPERM) {
			failed = errors.Join(failed, err)
		}
		p.ConvertData, p.ConvertMetadata, p.ConvertSystem = targets.data, targets.metadata, targets.system
	}
	return p, wrapPool(p, errors.Join(failed, dir.err))
}

// ReadSysfsPool reads what sysfs tells of a filesystem that is mounted where
// this process cannot reach it. The sizes of its devices stay unknown. The
// error is fs.ErrNotExist where no such filesystem is mounted.
func (c *Client) ReadSysfsPool(u UUID) (*Pool, error) {
	dir, err := openSysfsDir(c.paths.Sys + "/fs/btrfs/" + u.String())
	if err != nil {
		return nil, err
	}
	defer dir.close()
	// Nothing holds the mount. This link is the first thing to go at an unmount
	// and comes after the devices and the label at a mount
	// (btrfs_sysfs_remove_mounted and btrfs_sysfs_add_mounted in
	// fs/btrfs/sysfs.c): where it is there before and after, so were they.
	if !dir.exists("bdi") {
		return nil, fmt.Errorf("pool %s: %w", u, fs.ErrNotExist)
	}
	p := &Pool{UUID: u}
	c.readSysfs(dir, p)
	p.Features = dir.features()
	p.Checksum = dir.checksum()
	p.NodeSize, p.SectorSize = dir.number("nodesize"), dir.number("sectorsize")
	if mu := dir.uuid("metadata_uuid"); mu != u {
		p.MetadataUUID = mu
	}
	for i := range p.Devices {
		p.Devices[i].Errors = dir.deviceErrors(p.Devices[i].ID)
	}
	if !dir.exists("bdi") {
		return nil, fmt.Errorf("pool %s: %w", u, fs.ErrNotExist)
	}
	return p, wrapPool(p, dir.err)
}

func wrapPool(p *Pool, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pool %s: %w", p.UUID, err)
}

func (c *Client) readSysfs(dir *sysfsDir, p *Pool) {
	p.Label = dir.text("label").Value
	p.Spaces = dir.spaces()
	p.GlobalReserve = dir.globalReserve()
	p.Commits = dir.commits()
	p.ExclusiveOperation = dir.text("exclusive_operation")
	for _, id := range dir.deviceIDs() {
		d := Device{ID: id}
		dir.device(&d)
		p.Devices = append(p.Devices, d)
	}
}

func (c *Client) readDevice(f *Filesystem, d *Device) error {
	var info devInfoArgs
	if err := f.devInfo(d.ID, &info); err != nil {
		return err
	}
	d.UUID = info.uuid
	d.Size, d.Used = Some(info.totalBytes), Some(info.bytesUsed)
	if info.fsid != f.UUID() {
		d.FSID = info.fsid
	}
	d.Path, _, _ = strings.Cut(string(info.path[:]), "\x00")
	// The kernel says "<missing disk>" or nothing for a device that is gone.
	if !strings.HasPrefix(d.Path, "/") {
		d.Path = ""
	} else {
		disk := c.disk(d.Path, d.UUID)
		d.Name, d.Model, d.Serial = disk.name, disk.model, disk.serial
	}
	counts, err := f.devStats(d.ID)
	if err != nil {
		// A device that is gone has no counters.
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	}
	d.Errors = Some(counts)
	return nil
}

// readProfileSpaces fills in the figures of each profile.
func readProfileSpaces(f *Filesystem, spaces []Space) error {
	answer, err := f.spaceInfo()
	if err != nil {
		return err
	}
	for i := range spaces {
		s := &spaces[i]
		s.Profiles = s.Profiles[:0]
		for _, a := range answer {
			if a.blockGroupType == s.Type && a.Total > 0 {
				s.Profiles = append(s.Profiles, a.ProfileSpace)
			}
		}
	}
	return nil
}

// disk returns the kernel name, model and serial number of a device.
func (c *Client) disk(path string, uuid UUID) disk {
	key := diskKey{path, uuid}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.disks[key]; ok {
		return d
	}
	var d disk
	if d.name = c.kernelName(path); d.name == "" {
		return d // perhaps udev is not done yet: ask again next time
	}
	dir := filepath.Join(c.paths.Sys, "class/block", d.name)
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		// A partition's directory lies in that of its disk.
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = filepath.Dir(real)
		}
	}
	d.model = readTrimmed(filepath.Join(dir, "device/model"))
	if d.serial = readTrimmed(filepath.Join(dir, "device/serial")); d.serial == "" {
		d.serial = readUnitSerial(filepath.Join(dir, "device/vpd_pg80"))
	}
	c.disks[key] = d
	return d
}

func readTrimmed(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(b)), "")
}

// readUnitSerial reads the unit serial number page of a SCSI or SATA disk: 4
// bytes of header, the last of them the length, then ASCII (SPC-4, 7.8.14).
func readUnitSerial(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) < 4 {
		return ""
	}
	return strings.ToValidUTF8(strings.Trim(string(b[4:min(len(b), 4+int(b[3]))]), " \x00"), "")
}

// Record reads everything of a filesystem, the chunks as well where the
// process has CAP_SYS_ADMIN. It is for fixtures and reports, not for scrapes.
func (c *Client) Record(m *Mount) (*Pool, error) {
	f, mountpoint, err := c.Open(m)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	p, err := c.ReadPool(f, m, mountpoint)
	if p == nil {
		return nil, err
	}
	if dir, dirErr := openSysfsDir(c.paths.Sys + "/fs/btrfs/" + p.UUID.String()); dirErr != nil {
		err = errors.Join(err, dirErr)
	} else {
		p.Features = dir.features()
		err = errors.Join(err, wrapPool(p, dir.err))
		dir.close()
	}
	var chunks []Chunk
	_, walkErr := f.WalkChunks(func(chunk *Chunk) error {
		copied := *chunk
		copied.Stripes = slices.Clone(chunk.Stripes)
		chunks = append(chunks, copied)
		return nil
	})
	if walkErr == nil {
		p.Chunks = Some(chunks)
	} else if !errors.Is(walkErr, unix.EPERM) {
		err = errors.Join(err, wrapPool(p, walkErr))
	}
	return p, err
}
