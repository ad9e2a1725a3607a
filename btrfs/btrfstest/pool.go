//go:build linux

package btrfstest

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// PoolOptions describes a pool to make.
type PoolOptions struct {
	// Sizes are the sizes in bytes of new disks, one each. Images are sparse:
	// terabytes cost nothing.
	Sizes []int64
	// Disks are prepared disks that come before those of Sizes.
	Disks []*Disk
	// DirectIO makes the loop devices of Sizes bypass the page cache.
	DirectIO bool

	// Data and Metadata are profiles as mkfs.btrfs(8) names them; empty means
	// its default.
	Data, Metadata string
	// Mixed keeps data and metadata in the same block groups.
	Mixed    bool
	Label    string
	MkfsArgs []string // more arguments of mkfs.btrfs

	// MountOptions come on top of nodiscard.
	MountOptions []string
	// NoMount leaves the new pool unmounted.
	NoMount bool
}

// Pool is a btrfs filesystem on disks of the rig. Its methods must not be
// called from several goroutines at a time, except those that say so.
type Pool struct {
	// Mountpoint is a directory of the rig; the pool need not be mounted.
	Mountpoint string
	// UUID is the filesystem id as sysfs names it.
	UUID string
	// Disks are the pool's disks, detached ones too.
	Disks []*Disk

	rig          *Rig
	directIO     bool
	mountOptions []string
	mixed        bool
	mounted      bool
	files        int      // number of files named by newFile
	aged         []string // files of Age that still exist
	replacing    *replacement
}

// NewPool makes a filesystem and, unless told otherwise, mounts it.
func (r *Rig) NewPool(options PoolOptions) (*Pool, error) {
	pool, err := r.newPool(options)
	if err != nil {
		return nil, fmt.Errorf("make pool: %w", err)
	}
	return pool, nil
}

func (r *Rig) newPool(options PoolOptions) (*Pool, error) {
	pool := &Pool{
		Mountpoint:   r.newPath("mnt", "pool"),
		Disks:        slices.Clone(options.Disks),
		rig:          r,
		directIO:     options.DirectIO,
		mountOptions: options.MountOptions,
		mixed:        options.Mixed,
	}
	if err := os.Mkdir(pool.Mountpoint, 0o755); err != nil {
		return nil, err
	}
	for _, size := range options.Sizes {
		disk, err := r.NewDisk(DiskOptions{Size: size, DirectIO: options.DirectIO})
		if err != nil {
			return nil, err
		}
		pool.Disks = append(pool.Disks, disk)
	}

	args := []string{"-q", "-f", "-K"}
	if options.Data != "" {
		args = append(args, "-d", options.Data)
	}
	if options.Metadata != "" {
		args = append(args, "-m", options.Metadata)
	}
	if options.Mixed {
		args = append(args, "-M")
	}
	if options.Label != "" {
		args = append(args, "-L", options.Label)
	}
	args = append(args, options.MkfsArgs...)
	for _, disk := range pool.Disks {
		args = append(args, disk.Loop)
	}
	if _, err := runCommand("mkfs.btrfs", args...); err != nil {
		return nil, err
	}
	for _, disk := range pool.Disks {
		super, err := readSuperblock(disk.Image)
		if err != nil {
			return nil, err
		}
		disk.DevID = super.devID
		pool.UUID = formatUUID(super.fsid)
	}

	r.mu.Lock()
	r.pools = append(r.pools, pool)
	r.mu.Unlock()
	if options.NoMount {
		return pool, nil
	}
	return pool, pool.Mount()
}

func formatUUID(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Disk returns the disk with a device id, and nil when there is none.
func (p *Pool) Disk(devID uint64) *Disk {
	for _, disk := range p.Disks {
		if disk.DevID == devID {
			return disk
		}
	}
	return nil
}

func (p *Pool) findDisk(devID uint64) (*Disk, error) {
	if disk := p.Disk(devID); disk != nil {
		return disk, nil
	}
	return nil, fmt.Errorf("no disk %d in pool %s", devID, p.UUID)
}

// Mount mounts the pool with nodiscard, the mount options of PoolOptions and
// those given here, named as in btrfs(5) and mount(8).
func (p *Pool) Mount(options ...string) error {
	return p.mount(0, options)
}

// MountDegraded mounts a pool of which devices are missing.
func (p *Pool) MountDegraded(readOnly bool) error {
	if readOnly {
		return p.Mount("degraded", "ro")
	}
	return p.Mount("degraded")
}

// Remount changes the options of the mounted pool; "ro" and "rw" among them.
func (p *Pool) Remount(options ...string) error {
	return p.mount(unix.MS_REMOUNT, options)
}

func (p *Pool) mount(flags uintptr, options []string) error {
	var device string
	for _, disk := range p.Disks {
		if disk.Loop == "" {
			continue
		}
		if flags&unix.MS_REMOUNT == 0 {
			if err := scanDevice(disk.Loop); err != nil {
				return fmt.Errorf("mount pool %s: %w", p.UUID, err)
			}
		}
		if device == "" {
			device = disk.Loop
		}
	}
	options = slices.Concat([]string{"nodiscard"}, p.mountOptions, options)
	flags, data := mountArguments(flags, options)
	if err := unix.Mount(device, p.Mountpoint, "btrfs", flags, data); err != nil {
		return fmt.Errorf("mount pool %s (%s) on %s with %s: %w", p.UUID, device, p.Mountpoint, strings.Join(options, ","), err)
	}
	p.mounted = true
	return nil
}

// mountArguments sorts options into the flags of mount(2) and what is left for
// the filesystem. A later option overrides an earlier one.
func mountArguments(flags uintptr, options []string) (uintptr, string) {
	var data []string
	for _, option := range options {
		switch option {
		case "ro":
			flags |= unix.MS_RDONLY
		case "rw":
			flags &^= unix.MS_RDONLY
		case "noatime":
			flags |= unix.MS_NOATIME
		case "nodev":
			flags |= unix.MS_NODEV
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "nosuid":
			flags |= unix.MS_NOSUID
		default:
			data = append(data, option)
		}
	}
	return flags, strings.Join(data, ",")
}

// Unmount unmounts the pool. It does nothing when the pool is not mounted.
func (p *Pool) Unmount() error {
	if !p.mounted {
		return nil
	}
	if err := unmount(p.Mountpoint, releasePatience); err != nil {
		return fmt.Errorf("pool %s: %w", p.UUID, err)
	}
	p.mounted = false
	return nil
}

// Path is the path of a name in the mounted pool. An absolute path is returned
// as it is.
func (p *Pool) Path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(p.Mountpoint, name)
}

// newFile names a file at the top of the pool that no other call has named.
func (p *Pool) newFile(kind string) string {
	p.files++
	return p.Path(fmt.Sprintf("%s-%04d", kind, p.files))
}

// Sync commits the running transaction, see syncfs(2).
func (p *Pool) Sync() error {
	dir, err := os.Open(p.Mountpoint)
	if err != nil {
		return fmt.Errorf("sync pool %s: %w", p.UUID, err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync pool %s: %w", p.UUID, err)
	}
	return nil
}

// DropCaches writes the pool's changes out and empties the page cache of the
// machine, so that the next read comes from the disks. See
// Documentation/admin-guide/sysctl/vm.rst.
func (p *Pool) DropCaches() error {
	if err := p.Sync(); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop caches: %w", err)
	}
	return nil
}

// Allocate makes a new file at path, relative to the top of the pool, and
// allocates size bytes of data for it without writing them.
func (p *Pool) Allocate(path string, size int64) error {
	file, err := os.OpenFile(p.Path(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	defer file.Close()
	if err := fallocate(file, 0, size); err != nil {
		return fmt.Errorf("allocate %d bytes for %s: %w", size, path, err)
	}
	return nil
}

// WriteFile writes size random bytes to a file at path, relative to the top of
// the pool, and waits until they are on the disks.
func (p *Pool) WriteFile(path string, size int64, rng *rand.Rand) error {
	file, err := os.Create(p.Path(path))
	if err != nil {
		return fmt.Errorf("write %d bytes: %w", size, err)
	}
	defer file.Close()
	buffer := make([]byte, 1<<20)
	for size > 0 {
		n := min(size, int64(len(buffer)))
		fillRandom(buffer[:n], rng)
		if _, err := file.Write(buffer[:n]); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
		size -= n
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("write file %s: %w", path, err)
	}
	return file.Close()
}

// fillRandom fills a buffer with what a generator's next 32 bytes are the key
// of. The cipher is for its speed: byte by byte under the race detector, the
// data of a pool took longer than the test.
func fillRandom(buffer []byte, rng *rand.Rand) {
	var key [32]byte
	for i := 0; i < len(key); i += 8 {
		binary.LittleEndian.PutUint64(key[i:], rng.Uint64())
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // it takes any 32 bytes
	}
	clear(buffer)
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(buffer, buffer)
}

// fallocate allocates part of a file, see fallocate(2).
func fallocate(file *os.File, offset, size int64) error {
	for {
		err := unix.Fallocate(int(file.Fd()), 0, offset, size)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
