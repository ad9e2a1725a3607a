//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// agedDisks is how many disks an ageing pool may grow to.
	agedDisks = 8

	// relocationLimit bounds how much of a disk is moved when it is removed or
	// shrunk, and blockGroupLimit how much of each block group that is
	// balanced or converted: relocation writes also what was only allocated.
	relocationLimit = 512 << 20
	blockGroupLimit = 256 << 20

	// metadataRoom is how much must be unallocated on a disk to say that a
	// metadata block group still fits there, with some to spare.
	metadataRoom = 512 << 20
)

// Age makes a mounted pool look as if it had been in use: a random sequence of
// allocating, writing and deleting files, balancing and converting a few block
// groups, adding, removing and resizing disks. It returns a line for each step
// so that a failure can be told and repeated: the sequence depends only on rng,
// the pool and the kernel. A step that the pool rightly refuses, for want of
// space or devices, is part of ageing. Where the kernel gives the filesystem up
// and makes it read-only, the error wraps EROFS. A step may take seconds, and
// the images grow by what is relocated, up to a GiB or so in a step.
func (p *Pool) Age(rng *rand.Rand, steps int) ([]string, error) {
	var log []string
	for i := range steps {
		step := p.chooseAgeStep(rng)
		done, err := step(rng)
		if refusal := refusalOf(err); refusal != "" {
			done += ": refused: " + refusal
			err = nil
		}
		log = append(log, done)
		if err != nil {
			return log, fmt.Errorf("age pool %s: step %d, %s: %w", p.UUID, i+1, done, err)
		}
	}
	return log, p.Sync()
}

// ageStep does one thing and says what, also when it fails.
type ageStep func(*rand.Rand) (string, error)

func (p *Pool) chooseAgeStep(rng *rand.Rand) ageStep {
	steps := []struct {
		weight int
		do     ageStep
	}{
		{6, p.ageAllocate},
		{2, p.ageWrite},
		{3, p.ageDelete},
		{3, p.ageBalance},
		{1, p.ageAddDisk},
		{1, p.ageRemoveDisk},
		{2, p.ageResize},
		{1, p.ageConvert},
	}
	sum := 0
	for _, s := range steps {
		sum += s.weight
	}
	choice := rng.IntN(sum)
	for _, s := range steps {
		if choice < s.weight {
			return s.do
		}
		choice -= s.weight
	}
	panic("unreachable: the choice is below the sum of the weights")
}

// refusalOf says why the kernel refused a step that it may refuse, and nothing
// for other errors.
func refusalOf(err error) string {
	if errors.Is(err, unix.ENOSPC) {
		return "no space left"
	}
	var command *CommandError
	if !errors.As(err, &command) {
		return ""
	}
	for _, refusal := range []string{
		"No space left on device",
		"unable to go below", // too few devices for a profile
		"unable to remove the only writeable device",
	} {
		if strings.Contains(command.Stderr, refusal) {
			return refusal
		}
	}
	return ""
}

func (p *Pool) ageAllocate(rng *rand.Rand) (string, error) {
	count := 1 + rng.IntN(6)
	done := fmt.Sprintf("allocate %d files:", count)
	for range count {
		available, err := p.available()
		if err != nil {
			return done, err
		}
		// Now and then small ones, which leave holes when they go; and never
		// the whole pool.
		least, most := available/64, max(available/4, 2*leastFillStep)
		if rng.IntN(3) == 0 {
			least, most = leastFillStep, max(available/64, 2*leastFillStep)
		}
		size := logUniform(rng, max(least, leastFillStep), most)
		done += fmt.Sprintf(" %d", size)
		path := p.newFile("aged")
		p.aged = append(p.aged, path)
		if err := p.Allocate(path, size); err != nil {
			return done, err
		}
	}
	return done, nil
}

// ageWrite makes metadata grow: checksums for data, and small files that live
// in the tree.
func (p *Pool) ageWrite(rng *rand.Rand) (string, error) {
	size, small := int64(1+rng.IntN(8))<<20, 50+rng.IntN(200)
	done := fmt.Sprintf("write %d bytes and %d small files", size, small)
	for i := range small + 1 {
		path := p.newFile("aged")
		p.aged = append(p.aged, path)
		if i > 0 {
			size = 1024
		}
		if err := p.writeUnsynced(path, size, rng); err != nil {
			return done, err
		}
	}
	return done, p.Sync()
}

func (p *Pool) writeUnsynced(path string, size int64, rng *rand.Rand) error {
	data := make([]byte, size)
	fillRandom(data, rng)
	return os.WriteFile(path, data, 0o644)
}

func (p *Pool) ageDelete(rng *rand.Rand) (string, error) {
	share := 1 + rng.IntN(2) // of four
	deleted := 0
	var kept []string
	for _, path := range p.aged {
		if rng.IntN(4) >= share {
			kept = append(kept, path)
			continue
		}
		// A file that was refused for want of space need not be there.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "delete files", err
		}
		deleted++
	}
	p.aged = kept
	return fmt.Sprintf("delete %d files", deleted), p.Sync()
}

func (p *Pool) ageBalance(rng *rand.Rand) (string, error) {
	kind := []string{"-d", "-d", "-d", "-m"}[rng.IntN(4)]
	filters := fmt.Sprintf("usage=%d,limit=%d", min(5+rng.IntN(91), p.usageLimit()), 1+rng.IntN(2))
	args := []string{kind + filters}
	if p.mixed {
		args = []string{"-d" + filters, "-m" + filters} // the kernel wants both alike
	}
	done := "balance " + strings.Join(args, " ")
	if kind == "-m" || p.mixed {
		if room, err := p.roomForMetadata(); err != nil || !room {
			return done + " not: no room for metadata", err
		}
	}
	return done, p.Balance(args...)
}

// largestBlockGroup is how large a block group of data can be, in bytes: a
// tenth of the pool, and 10 GiB (decide_stripe_size_regular in
// fs/btrfs/volumes.c).
func (p *Pool) largestBlockGroup() int64 {
	var size int64
	for _, disk := range p.Disks {
		size += disk.Size
	}
	return min(size/10, 10<<30)
}

// usageLimit is the usage in percent up to which no block group holds more
// than blockGroupLimit.
func (p *Pool) usageLimit() int {
	return int(max(1, min(95, blockGroupLimit*100/p.largestBlockGroup())))
}

// roomForMetadata reports whether metadata can be relocated without danger.
// Where it finds no space for that, the kernel does not refuse: it aborts the
// transaction and makes the filesystem read-only.
func (p *Pool) roomForMetadata() (bool, error) {
	roomy := 0
	for _, disk := range p.Disks {
		super, err := p.committedSuperblock(disk)
		if err != nil {
			return false, err
		}
		if super.totalBytes-super.bytesUsed >= metadataRoom {
			roomy++
		}
	}
	// No profile wants more than four disks.
	return roomy >= min(len(p.Disks), 4), nil
}

func (p *Pool) ageConvert(rng *rand.Rand) (string, error) {
	profiles := []string{"single", "dup"}
	if len(p.Disks) >= 2 {
		profiles = append(profiles, "raid0", "raid1", "raid10")
	}
	if len(p.Disks) >= 3 {
		profiles = append(profiles, "raid1c3", "raid5")
	}
	if len(p.Disks) >= 4 {
		profiles = append(profiles, "raid1c4", "raid6")
	}
	profile := profiles[rng.IntN(len(profiles))]
	filter := fmt.Sprintf("usage=%d,limit=%d", p.usageLimit(), 1+rng.IntN(2))
	if metadata := rng.IntN(4) == 0; !metadata && !p.mixed {
		return fmt.Sprintf("convert data to %s, %s", profile, filter), p.Convert(profile, "", filter)
	}
	done := fmt.Sprintf("convert metadata to %s, %s", profile, filter)
	if room, err := p.roomForMetadata(); err != nil || !room {
		return done + " not: no room for metadata", err
	}
	if p.mixed {
		return done, p.Convert(profile, profile, filter)
	}
	return done, p.Convert("", profile, filter)
}

func (p *Pool) ageAddDisk(rng *rand.Rand) (string, error) {
	var largest int64
	for _, disk := range p.Disks {
		largest = max(largest, disk.Size)
	}
	size := logUniform(rng, min(1<<30, largest), largest)
	if len(p.Disks) >= agedDisks {
		return "add no disk: there are enough", nil
	}
	_, err := p.AddDisk(size)
	return fmt.Sprintf("add disk of %d bytes", size), err
}

func (p *Pool) ageRemoveDisk(rng *rand.Rand) (string, error) {
	disk := p.Disks[rng.IntN(len(p.Disks))]
	done := fmt.Sprintf("remove disk %d", disk.DevID)
	super, err := p.committedSuperblock(disk)
	if err != nil {
		return done, err
	}
	if len(p.Disks) == 1 || super.bytesUsed > relocationLimit {
		return done + " not: too much on it", nil
	}
	return done, p.RemoveDisk(disk.DevID)
}

// ageResize makes the filesystem use less of a disk, or all of it again.
func (p *Pool) ageResize(rng *rand.Rand) (string, error) {
	disk := p.Disks[rng.IntN(len(p.Disks))]
	less := logUniform(rng, 16<<20, 1<<30)
	done := fmt.Sprintf("resize disk %d", disk.DevID)
	super, err := p.committedSuperblock(disk)
	if err != nil {
		return done, err
	}
	size := disk.Size
	if int64(super.totalBytes) == disk.Size {
		less = min(less, disk.Size/4)
		// Each block group of which a part lies at the end is moved.
		full := int64(super.totalBytes-super.bytesUsed) < 2*less
		if full && p.largestBlockGroup() > relocationLimit {
			return done + " not: too much to move", nil
		}
		size -= less
		size -= size % leastFillStep
	}
	return fmt.Sprintf("%s to %d bytes", done, size), p.ResizeDisk(disk.DevID, size)
}

// committedSuperblock reads the superblock of a disk as of now.
func (p *Pool) committedSuperblock(disk *Disk) (superblock, error) {
	if err := p.Sync(); err != nil {
		return superblock{}, err
	}
	return readSuperblock(disk.Image)
}

// available is what statfs(2) calls available, in bytes: no truth, but a
// measure for what to try.
func (p *Pool) available() (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(p.Mountpoint, &stat); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", p.Mountpoint, err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// logUniform draws from [least, most] with each order of magnitude as likely as
// the other, in multiples of 64 KiB.
func logUniform(rng *rand.Rand, least, most int64) int64 {
	low, high := math.Log(float64(least)), math.Log(float64(most))
	size := int64(math.Exp(low + rng.Float64()*(high-low)))
	return max(size-size%leastFillStep, leastFillStep)
}

// AgedFiles lists the files that Age has left in the pool.
func (p *Pool) AgedFiles() []string { return slices.Clone(p.aged) }
