package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ScrubCounters are the counters of one BTRFS_IOC_SCRUB call
// (struct btrfs_scrub_progress in include/uapi/linux/btrfs.h).
type ScrubCounters struct {
	DataExtentsScrubbed uint64 `json:"data_extents_scrubbed"`
	TreeExtentsScrubbed uint64 `json:"tree_extents_scrubbed"`
	DataBytesScrubbed   uint64 `json:"data_bytes_scrubbed"`
	TreeBytesScrubbed   uint64 `json:"tree_bytes_scrubbed"`
	ReadErrors          uint64 `json:"read_errors"`
	CsumErrors          uint64 `json:"csum_errors"`
	VerifyErrors        uint64 `json:"verify_errors"` // tree blocks that are not what they should be
	NoCsum              uint64 `json:"no_csum"`       // sectors without a checksum
	CsumDiscards        uint64 `json:"csum_discards"`
	SuperErrors         uint64 `json:"super_errors"`
	MallocErrors        uint64 `json:"malloc_errors"`
	UncorrectableErrors uint64 `json:"uncorrectable_errors"`
	// CorrectedErrors counts what could be corrected from another copy. The
	// kernel counts it also where it wrote nothing: in a read-only scrub, and
	// where the write failed.
	CorrectedErrors  uint64 `json:"corrected_errors"`
	LastPhysical     uint64 `json:"last_physical"`
	UnverifiedErrors uint64 `json:"unverified_errors"` // gone at the second look
}

// Add adds the counters of another call. LastPhysical becomes the later one.
func (c *ScrubCounters) Add(o *ScrubCounters) {
	c.DataExtentsScrubbed += o.DataExtentsScrubbed
	c.TreeExtentsScrubbed += o.TreeExtentsScrubbed
	c.DataBytesScrubbed += o.DataBytesScrubbed
	c.TreeBytesScrubbed += o.TreeBytesScrubbed
	c.ReadErrors += o.ReadErrors
	c.CsumErrors += o.CsumErrors
	c.VerifyErrors += o.VerifyErrors
	c.NoCsum += o.NoCsum
	c.CsumDiscards += o.CsumDiscards
	c.SuperErrors += o.SuperErrors
	c.MallocErrors += o.MallocErrors
	c.UncorrectableErrors += o.UncorrectableErrors
	c.CorrectedErrors += o.CorrectedErrors
	c.UnverifiedErrors += o.UnverifiedErrors
	c.LastPhysical = max(c.LastPhysical, o.LastPhysical)
}

// BytesScrubbed returns the bytes read and checked.
func (c ScrubCounters) BytesScrubbed() uint64 { return c.DataBytesScrubbed + c.TreeBytesScrubbed }

// Errors returns the number of errors found, each once: `btrfs scrub status`
// counts them the same way.
func (c ScrubCounters) Errors() uint64 {
	return c.ReadErrors + c.CsumErrors + c.VerifyErrors + c.SuperErrors
}

// scrubArgs is struct btrfs_ioctl_scrub_args.
type scrubArgs struct {
	devid    uint64
	start    uint64
	end      uint64
	flags    uint64
	progress ScrubCounters
	_        [109]uint64
}

const (
	sizeScrubArgs = 1024

	scrubFlagReadOnly = 1 << 0
)

var (
	ioctlScrub         = ioc(iocRead|iocWrite, 27, sizeScrubArgs)
	ioctlScrubCancel   = ioc(0, 28, 0)
	ioctlScrubProgress = ioc(iocRead|iocWrite, 29, sizeScrubArgs)
)

// ScrubRange scrubs the device extents of a device that overlap [start, end),
// each as a whole, and the superblocks of the device. It blocks until that is
// done; CancelScrub from another goroutine ends it. With readOnly nothing is
// repaired. Needs CAP_SYS_ADMIN.
//
// Errors: unix.EINPROGRESS where a scrub of the device or a device replace
// runs, unix.ECANCELED, unix.ENODEV for a device that is unknown or missing,
// unix.EROFS on a read-only filesystem unless readOnly. The counters are those
// up to the error.
//
// A signal that is pending on the calling thread switches the kernel's
// throttle off for the rest of the call (schedule_timeout_interruptible in
// scrub_throttle_dev_io, fs/btrfs/scrub.c): call it on a locked thread with all
// signals masked.
func (f *Filesystem) ScrubRange(devid, start, end uint64, readOnly bool) (ScrubCounters, error) {
	args := scrubArgs{devid: devid, start: start, end: end}
	if readOnly {
		args.flags = scrubFlagReadOnly
	}
	// Not by way of f.ioctl: what was interrupted is not to be done again
	// without a look at why.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), uintptr(ioctlScrub), uintptr(unsafe.Pointer(&args)))
	if errno != 0 {
		return args.progress, fmt.Errorf("device %d: BTRFS_IOC_SCRUB: %w", devid, errno)
	}
	return args.progress, nil
}

// CancelScrub ends the scrubs of all devices, and also a running device
// replace: look at ExclusiveOperation before. unix.ENOTCONN says that none
// runs. It blocks until they have ended, on a disk that hangs for as long as
// that.
func (f *Filesystem) CancelScrub() error {
	if err := f.ioctl(ioctlScrubCancel, nil); err != nil {
		return fmt.Errorf("%s: BTRFS_IOC_SCRUB_CANCEL: %w", f.path, err)
	}
	return nil
}

// ScrubProgress returns the counters of the scrub of a device that runs, by
// whomever. unix.ENOTCONN says that none runs. During a device replace the
// source device has progress too.
func (f *Filesystem) ScrubProgress(devid uint64) (ScrubCounters, error) {
	args := scrubArgs{devid: devid}
	if err := f.ioctl(ioctlScrubProgress, unsafe.Pointer(&args)); err != nil {
		return ScrubCounters{}, fmt.Errorf("device %d: BTRFS_IOC_SCRUB_PROGRESS: %w", devid, err)
	}
	return args.progress, nil
}

// DeviceExtents returns extents of one device that begin at from or later, in
// order of their offset: as many as it takes to reach the given sum of bytes,
// at least one if there is one. Needs CAP_SYS_ADMIN.
func (f *Filesystem) DeviceExtents(devid, from, bytes uint64) ([]DeviceExtent, error) {
	var (
		extents []DeviceExtent
		sum     uint64
	)
	err := f.walkTree(treeRange{
		tree: treeDevice, minObject: devid, maxObject: devid,
		minType: itemDeviceExtent, maxType: itemDeviceExtent, minOffset: from,
	}, func(it *treeItem) error {
		if it.itemType != itemDeviceExtent || it.objectID != devid {
			return nil
		}
		e, err := parseDeviceExtent(it.objectID, it.offset, it.data)
		if err != nil {
			return err
		}
		if len(extents) > 0 && sum+e.Length > bytes {
			return errStopWalk
		}
		extents = append(extents, e)
		sum += e.Length
		return nil
	})
	if err != nil && !errors.Is(err, errStopWalk) {
		return nil, fmt.Errorf("%s: device %d: list its extents: %w", f.path, devid, err)
	}
	return extents, nil
}

// Inode is a file's place in a subvolume.
type Inode struct {
	Number    uint64
	Offset    uint64 // bytes from the start of the file
	Subvolume uint64 // id of the subvolume's tree
}

const (
	logicalInoBufferSize = 64 << 10
	containerHeader      = 16
)

type logicalInoArgs struct {
	logical uint64
	size    uint64
	_       [3]uint64
	flags   uint64
	inodes  uint64 // address of the buffer
}

type inoLookupArgs struct {
	treeID   uint64
	objectID uint64
	name     [4080]byte
}

const (
	sizeLogicalInoArgs = 56
	sizeInoLookupArgs  = 4096
)

var (
	ioctlInoLookup    = ioc(iocRead|iocWrite, 18, sizeInoLookupArgs)
	ioctlLogicalInoV2 = ioc(iocRead|iocWrite, 59, sizeLogicalInoArgs)
)

// dataContainer is struct btrfs_data_container with room for its answer.
type dataContainer struct {
	bytesLeft, bytesMissing  uint32
	elements, elementsMissed uint32
	values                   [(logicalInoBufferSize - containerHeader) / 8]uint64
}

// LogicalInodes returns the files, in all subvolumes, that refer to the byte
// at a logical address; complete is false where there are more than fit in
// one answer. An address that no file refers to is unix.ENOENT, that of a tree
// block too (the kernel makes that of its EINVAL). Needs CAP_SYS_ADMIN.
func (f *Filesystem) LogicalInodes(logical uint64) (inodes []Inode, complete bool, err error) {
	answer := new(dataContainer)
	args := logicalInoArgs{logical: logical, size: logicalInoBufferSize, inodes: uint64(uintptr(unsafe.Pointer(answer)))}
	err = f.ioctl(ioctlLogicalInoV2, unsafe.Pointer(&args))
	runtime.KeepAlive(answer)
	if err != nil {
		return nil, false, fmt.Errorf("%s: BTRFS_IOC_LOGICAL_INO_V2 of %d: %w", f.path, logical, err)
	}
	n := min(int(answer.elements), len(answer.values))
	for i := 0; i+2 < n; i += 3 {
		inodes = append(inodes, Inode{Number: answer.values[i], Offset: answer.values[i+1], Subvolume: answer.values[i+2]})
	}
	return inodes, answer.elementsMissed == 0, nil
}

const (
	treeRoot        = 1
	itemRootBackref = 144
	objectFSTree    = 5
	objectFirstFree = 256
	rootRefHeader   = 18 // dirid, sequence, name_len
	itemInodeRef    = 12
	itemInodeExtref = 13
	inodeRefHeader  = 10 // index, name_len

	// maxDepth bounds how many directories or subvolumes lie in each other.
	maxDepth = 10000
)

// InodePath returns the first path of an inode, from the top of its
// subvolume. It may be longer than a system call takes (PATH_MAX). Needs
// CAP_SYS_ADMIN. unix.ENOENT says that the inode or the subvolume is gone.
func (f *Filesystem) InodePath(subvolume, inode uint64) (string, error) {
	if inode == objectFirstFree {
		return "", nil
	}
	parent, name, err := f.inodeName(subvolume, inode)
	if err != nil {
		return "", err
	}
	dir, err := f.directoryPath(subvolume, parent)
	return dir + name, err
}

// inodeName returns the first name of an inode and the directory that has it.
func (f *Filesystem) inodeName(subvolume, inode uint64) (parent uint64, name string, err error) {
	// INODE_REF has the parent as its offset and begins with a name: index,
	// length, name. Names for which there is no room are in INODE_EXTREF
	// items: parent, index, length, name.
	err = f.walkTree(treeRange{
		tree: subvolume, minObject: inode, maxObject: inode, minType: itemInodeRef, maxType: itemInodeExtref,
	}, func(it *treeItem) error {
		if it.objectID != inode {
			return nil
		}
		data := it.data
		switch it.itemType {
		case itemInodeRef:
			parent = it.offset
		case itemInodeExtref:
			if len(data) < 8 {
				return nil
			}
			parent, data = binary.LittleEndian.Uint64(data), data[8:]
		default:
			return nil
		}
		if len(data) < inodeRefHeader {
			return nil
		}
		n := int(binary.LittleEndian.Uint16(data[8:]))
		if n == 0 || len(data) < inodeRefHeader+n {
			return nil
		}
		name = string(data[inodeRefHeader : inodeRefHeader+n])
		return errStopWalk
	})
	if errors.Is(err, errStopWalk) {
		return parent, name, nil
	}
	if err == nil {
		err = unix.ENOENT
	}
	return 0, "", fmt.Errorf("%s: name of inode %d in subvolume %d: %w", f.path, inode, subvolume, err)
}

// directoryPath returns the path of a directory from the top of its
// subvolume: "" or a path that ends with a slash.
func (f *Filesystem) directoryPath(subvolume, directory uint64) (string, error) {
	path := ""
	// The bound is against a damaged tree that leads in a circle.
	for range maxDepth {
		if directory == objectFirstFree {
			return path, nil
		}
		args := inoLookupArgs{treeID: subvolume, objectID: directory}
		err := f.ioctl(ioctlInoLookup, unsafe.Pointer(&args))
		if err == nil {
			dir, _, _ := strings.Cut(string(args.name[:]), "\x00")
			return dir + path, nil
		}
		if !errors.Is(err, unix.ENAMETOOLONG) {
			return "", fmt.Errorf("%s: BTRFS_IOC_INO_LOOKUP of %d in subvolume %d: %w", f.path, directory, subvolume, err)
		}
		parent, name, err := f.inodeName(subvolume, directory)
		if err != nil {
			return "", err
		}
		directory, path = parent, name+"/"+path
	}
	return "", fmt.Errorf("%s: path of directory %d in subvolume %d: %w", f.path, directory, subvolume, unix.ELOOP)
}

// SubvolumePath returns the path of a subvolume from the top of the
// filesystem, "" for the top itself. unix.ENOENT says that it is deleted.
// Needs CAP_SYS_ADMIN.
func (f *Filesystem) SubvolumePath(id uint64) (string, error) {
	path := ""
	// The bound is against a damaged tree that leads in a circle.
	for range maxDepth {
		if id == objectFSTree {
			return strings.TrimSuffix(path, "/"), nil
		}
		var parent, directory uint64
		var name string
		err := f.walkTree(treeRange{
			tree: treeRoot, minObject: id, maxObject: id, minType: itemRootBackref, maxType: itemRootBackref,
		}, func(it *treeItem) error {
			if it.itemType != itemRootBackref || it.objectID != id || len(it.data) < rootRefHeader {
				return nil
			}
			n := int(binary.LittleEndian.Uint16(it.data[16:]))
			if len(it.data) < rootRefHeader+n {
				return nil
			}
			parent, directory = it.offset, binary.LittleEndian.Uint64(it.data)
			name = string(it.data[rootRefHeader : rootRefHeader+n])
			return errStopWalk
		})
		if err != nil && !errors.Is(err, errStopWalk) {
			return "", fmt.Errorf("%s: path of subvolume %d: %w", f.path, id, err)
		}
		if name == "" {
			return "", fmt.Errorf("%s: path of subvolume %d: %w", f.path, id, unix.ENOENT)
		}
		dir, err := f.directoryPath(parent, directory)
		if err != nil {
			return "", err
		}
		path, id = dir+name+"/"+path, parent
	}
	return "", fmt.Errorf("%s: path of subvolume %d: %w", f.path, id, unix.ELOOP)
}

// ExclusiveOperation returns the operation that runs on a mounted filesystem
// and admits no other: none, balance, balance paused, device add, device
// remove, device replace, resize or swap activate. O(1), reads no disk.
func (c *Client) ExclusiveOperation(uuid UUID) (string, error) {
	b, err := readFile(c.sysfsPool(uuid) + "/exclusive_operation")
	if err != nil {
		return "", fmt.Errorf("pool %s: %w", uuid, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// ScrubSpeedMax returns the limit of a device's scrub in bytes per second; 0
// is none. It is fs.ErrNotExist where the kernel has none (before 5.14) or the
// device is unknown.
func (c *Client) ScrubSpeedMax(uuid UUID, devid uint64) (uint64, error) {
	b, err := readFile(c.scrubSpeedMax(uuid, devid))
	if err != nil {
		return 0, fmt.Errorf("pool %s: device %d: %w", uuid, devid, err)
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("pool %s: device %d: scrub_speed_max: %w", uuid, devid, err)
	}
	return v, nil
}

// SetScrubSpeedMax sets the limit of a device's scrub in bytes per second, 0
// for none. It takes effect on a running scrub, and stays until it is set
// again or the filesystem is unmounted for good.
func (c *Client) SetScrubSpeedMax(uuid UUID, devid, bytesPerSecond uint64) error {
	fd, err := openat(unix.AT_FDCWD, c.scrubSpeedMax(uuid, devid), unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("pool %s: device %d: set scrub_speed_max: %w", uuid, devid, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, strconv.AppendUint(nil, bytesPerSecond, 10)); err != nil {
		return fmt.Errorf("pool %s: device %d: set scrub_speed_max: %w", uuid, devid, err)
	}
	return nil
}

func (c *Client) sysfsPool(uuid UUID) string { return c.paths.Sys + "/fs/btrfs/" + uuid.String() }

func (c *Client) scrubSpeedMax(uuid UUID, devid uint64) string {
	return c.sysfsPool(uuid) + "/devinfo/" + strconv.FormatUint(devid, 10) + "/scrub_speed_max"
}

// Disks returns the names of the whole disks beneath a block device: itself,
// the disk of a partition, and what a dm or md device is made of. It looks
// them up in sysfs.
func (c *Client) Disks(name string) ([]string, error) {
	seen := make(map[string]bool)
	var disks []string
	var add func(name string, depth int) error
	add = func(name string, depth int) error {
		if seen[name] || depth > 16 {
			return nil
		}
		seen[name] = true
		dir := filepath.Join(c.paths.Sys, "class/block", name)
		if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
			real, err := filepath.EvalSymlinks(dir)
			if err != nil {
				return fmt.Errorf("find the disk of partition %s: %w", name, err)
			}
			return add(filepath.Base(filepath.Dir(real)), depth+1)
		}
		below, err := os.ReadDir(filepath.Join(dir, "slaves"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("find the disks beneath %s: %w", name, err)
		}
		if len(below) == 0 {
			disks = append(disks, name)
			return nil
		}
		for _, b := range below {
			if err := add(b.Name(), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := add(name, 0); err != nil {
		return nil, err
	}
	return disks, nil
}

// Label returns the label of a mounted filesystem, "" where it has none or is
// not mounted. O(1), reads no disk.
func (c *Client) Label(uuid UUID) string {
	b, err := readFile(c.sysfsPool(uuid) + "/label")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// Chunk returns the chunk that begins at a logical address. unix.ENOENT says
// that there is none. Needs CAP_SYS_ADMIN.
func (f *Filesystem) Chunk(logical uint64) (*Chunk, error) {
	var chunk *Chunk
	err := f.walkTree(treeRange{
		tree: treeChunk, minObject: objectFirstChunk, maxObject: objectFirstChunk, minType: itemChunk, maxType: itemChunk, minOffset: logical,
	}, func(it *treeItem) error {
		if it.itemType == itemChunk && it.offset == logical {
			chunk = new(Chunk)
			if err := parseChunk(it.offset, it.data, chunk); err != nil {
				return err
			}
		}
		return errStopWalk
	})
	if err != nil && !errors.Is(err, errStopWalk) {
		return nil, fmt.Errorf("%s: chunk %d: %w", f.path, logical, err)
	}
	if chunk == nil {
		return nil, fmt.Errorf("%s: chunk %d: %w", f.path, logical, unix.ENOENT)
	}
	return chunk, nil
}

// ChunkAt returns the chunk that a logical address lies in, at a cost that grows
// with the number of chunks. unix.ENOENT says that there is none. Needs
// CAP_SYS_ADMIN.
func (f *Filesystem) ChunkAt(logical uint64) (*Chunk, error) {
	var found *Chunk
	_, err := f.WalkChunks(func(c *Chunk) error {
		if logical < c.Logical || logical-c.Logical >= c.Length {
			return nil
		}
		copied := *c
		copied.Stripes = slices.Clone(c.Stripes)
		found = &copied
		return errStopWalk
	})
	if err != nil && !errors.Is(err, errStopWalk) {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("%s: logical address %d: %w", f.path, logical, unix.ENOENT)
	}
	return found, nil
}
