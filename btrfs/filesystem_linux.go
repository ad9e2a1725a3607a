package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Filesystem is an open mount of a btrfs filesystem. Keep it open no longer
// than one reading takes: an open file keeps the mount busy.
//
// A Filesystem is for one goroutine at a time. Each of its calls may block
// for as long as a disk hangs, where the kernel has to read metadata for it.
type Filesystem struct {
	fd   int
	path string
	info fsInfoArgs
}

// ErrNotBtrfs is returned by OpenFilesystem for a path on another filesystem.
var ErrNotBtrfs = errors.New("not on a btrfs filesystem")

// OpenFilesystem opens any file or directory of a mounted btrfs filesystem
// for reading its facts. It needs read permission on path and nothing else;
// WalkChunks and WalkDeviceExtents need CAP_SYS_ADMIN on top.
func OpenFilesystem(path string) (*Filesystem, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := &Filesystem{fd: fd, path: path}
	f.info.flags = fsInfoFlagCsum | fsInfoFlagGeneration | fsInfoFlagMetadataUUID
	if err := f.ioctl(ioctlFSInfo, unsafe.Pointer(&f.info)); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.ENOTTY) {
			return nil, fmt.Errorf("%s: %w", path, ErrNotBtrfs)
		}
		return nil, fmt.Errorf("%s: BTRFS_IOC_FS_INFO: %w", path, err)
	}
	return f, nil
}

// Close releases the mount.
func (f *Filesystem) Close() error {
	if err := unix.Close(f.fd); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return nil
}

// UUID returns the filesystem's UUID as sysfs names it, read when the
// filesystem was opened.
func (f *Filesystem) UUID() UUID { return f.info.fsid }

// StatfsFree returns the bytes that df shows as available.
func (f *Filesystem) StatfsFree() (uint64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(f.fd, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), nil
		}
		if err != unix.EINTR {
			return 0, fmt.Errorf("%s: statfs: %w", f.path, err)
		}
	}
}

// MetadataUUID returns the UUID written in the metadata: another one than
// UUID after `btrfstune -m`. ok is false before kernel 5.9.
func (f *Filesystem) MetadataUUID() (uuid UUID, ok bool) {
	return f.info.metadataUUID, f.info.flags&fsInfoFlagMetadataUUID != 0
}

// checksumNames are the checksum algorithms by their number on disk.
var checksumNames = [...]string{"crc32c", "xxhash64", "sha256", "blake2b"}

func (f *Filesystem) checksum() Opt[string] {
	if f.info.flags&fsInfoFlagCsum == 0 || int(f.info.csumType) >= len(checksumNames) {
		return Opt[string]{}
	}
	return Some(checksumNames[f.info.csumType])
}

// devInfo asks for one device. An unknown devid is unix.ENODEV.
func (f *Filesystem) devInfo(devid uint64, args *devInfoArgs) error {
	*args = devInfoArgs{devid: devid}
	if err := f.ioctl(ioctlDevInfo, unsafe.Pointer(args)); err != nil {
		return fmt.Errorf("device %d: BTRFS_IOC_DEV_INFO: %w", devid, err)
	}
	return nil
}

// devStats asks for the error counters of one device.
func (f *Filesystem) devStats(devid uint64) (ErrorCounts, error) {
	args := devStatsArgs{devid: devid, items: uint64(len(devStatsArgs{}.values))}
	if err := f.ioctl(ioctlGetDevStats, unsafe.Pointer(&args)); err != nil {
		return ErrorCounts{}, fmt.Errorf("device %d: BTRFS_IOC_GET_DEV_STATS: %w", devid, err)
	}
	if args.items < uint64(len(args.values)) {
		return ErrorCounts{}, fmt.Errorf("device %d: BTRFS_IOC_GET_DEV_STATS gave %d counters instead of %d", devid, args.items, len(args.values))
	}
	v := args.values
	return ErrorCounts{Write: v[0], Read: v[1], Flush: v[2], Corruption: v[3], Generation: v[4]}, nil
}

// profileSpace is one answer of BTRFS_IOC_SPACE_INFO.
type profileSpace struct {
	blockGroupType BlockGroupType
	ProfileSpace
}

// spaceInfo asks for the size and use of each type and profile. The kernel
// sums over all block groups for it (btrfs_ioctl_space_info), so the cost
// grows with their number.
func (f *Filesystem) spaceInfo() ([]profileSpace, error) {
	args := spaceArgs{slots: maxSpaces}
	if err := f.ioctl(ioctlSpaceInfo, unsafe.Pointer(&args)); err != nil {
		return nil, fmt.Errorf("BTRFS_IOC_SPACE_INFO: %w", err)
	}
	var out []profileSpace
	for _, s := range args.spaces[:min(args.total, maxSpaces)] {
		if s.flags&flagGlobalReserve != 0 {
			continue
		}
		t, err := typeOfFlags(s.flags)
		if err != nil {
			return nil, fmt.Errorf("BTRFS_IOC_SPACE_INFO: %w", err)
		}
		p, err := profileOfFlags(s.flags)
		if err != nil {
			return nil, fmt.Errorf("BTRFS_IOC_SPACE_INFO: %w", err)
		}
		out = append(out, profileSpace{t, ProfileSpace{Profile: p, Total: s.total, Used: s.used}})
	}
	return out, nil
}

// convertTargets are the profiles that a balance converts to.
type convertTargets struct{ data, metadata, system Opt[Profile] }

// convertTargets asks for the profiles a running or paused balance converts
// to. Without a balance all are unknown. Needs CAP_SYS_ADMIN.
func (f *Filesystem) convertTargets() (convertTargets, error) {
	var (
		args balanceArgs
		out  convertTargets
	)
	err := f.ioctl(ioctlBalanceProgress, unsafe.Pointer(&args))
	if errors.Is(err, unix.ENOTCONN) {
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("BTRFS_IOC_BALANCE_PROGRESS: %w", err)
	}
	target := func(b *balanceFilter) Opt[Profile] {
		if b.flags&balanceFilterConvert == 0 {
			return Opt[Profile]{}
		}
		p, err := profileOfFlags(b.target &^ flagExtendedSingle)
		if err != nil {
			return Opt[Profile]{}
		}
		return Some(p)
	}
	out.data, out.metadata, out.system = target(&args.data), target(&args.metadata), target(&args.system)
	return out, nil
}

// searchBufferSize is what one TREE_SEARCH_V2 call may answer. Measured on
// 6.18: from 64 KiB to 1 MiB the cost of a walk is the same, larger buffers
// are slower.
const searchBufferSize = 64 << 10

type searchBuffer struct {
	args   searchArgsV2
	answer [searchBufferSize]byte
}

// searchBuffers are kept, because a scrape would else make most of its garbage
// with them.
var searchBuffers = sync.Pool{New: func() any { return new(searchBuffer) }}

// treeRange selects items of a tree: those whose key (objectid, type, offset)
// lies between the two, in leaves written in transaction minTransID or later.
type treeRange struct {
	tree                  uint64
	minObject, maxObject  uint64
	minType, maxType      uint32
	minOffset, minTransID uint64
	// most is how many items one call of the kernel may answer; 0 is as many as
	// fit. Who wants the first alone saves the copying of the others.
	most uint32
}

type treeItem struct {
	transID, objectID, offset uint64
	itemType                  uint32
	data                      []byte // valid until the next item
}

// walkTree calls fn for each item of the range, in key order. The kernel
// returns everything between the two keys, other item types included, and fn
// has to filter. Needs CAP_SYS_ADMIN.
func (f *Filesystem) walkTree(r treeRange, fn func(*treeItem) error) error {
	search := searchBuffers.Get().(*searchBuffer)
	defer searchBuffers.Put(search)
	args := &search.args
	args.key = searchKey{
		treeID:      r.tree,
		minObjectID: r.minObject, maxObjectID: r.maxObject,
		minType: r.minType, maxType: r.maxType,
		minOffset: r.minOffset, maxOffset: math.MaxUint64,
		minTransID: r.minTransID, maxTransID: math.MaxUint64,
	}
	for {
		args.key.items = math.MaxUint32
		if r.most > 0 {
			args.key.items = r.most
		}
		args.bufferSize = searchBufferSize
		if err := f.ioctl(ioctlTreeSearchV2, unsafe.Pointer(search)); err != nil {
			return fmt.Errorf("BTRFS_IOC_TREE_SEARCH_V2 of tree %d: %w", r.tree, err)
		}
		if args.key.items == 0 {
			return nil
		}
		var (
			item treeItem
			rest = search.answer[:]
		)
		for range args.key.items {
			if len(rest) < searchHeaderSize {
				return fmt.Errorf("tree %d: the kernel's answer ends within an item header", r.tree)
			}
			// The header is in the byte order of the machine, the item
			// behind it in that of the disk.
			item.transID = binary.NativeEndian.Uint64(rest[0:])
			item.objectID = binary.NativeEndian.Uint64(rest[8:])
			item.offset = binary.NativeEndian.Uint64(rest[16:])
			item.itemType = binary.NativeEndian.Uint32(rest[24:])
			length := int(binary.NativeEndian.Uint32(rest[28:]))
			if len(rest)-searchHeaderSize < length {
				return fmt.Errorf("tree %d: the kernel's answer ends within item (%d %d %d)", r.tree, item.objectID, item.itemType, item.offset)
			}
			item.data = rest[searchHeaderSize : searchHeaderSize+length]
			rest = rest[searchHeaderSize+length:]
			if err := fn(&item); err != nil {
				return err
			}
		}
		// Go on behind the last item.
		args.key.minObjectID, args.key.minType, args.key.minOffset = item.objectID, item.itemType, item.offset
		if !args.key.increment() {
			return nil
		}
	}
}

// increment moves the lower bound one key on; false at the end of all keys.
func (k *searchKey) increment() bool {
	if k.minOffset++; k.minOffset != 0 {
		return true
	}
	if k.minType++; k.minType <= math.MaxUint8 {
		return true
	}
	k.minType = 0
	k.minObjectID++
	return k.minObjectID != 0
}

// WalkChunks calls fn for each chunk of the filesystem, in order of logical
// address. The chunk is valid until fn returns: it is the same one each time,
// so that a walk allocates nothing that grows with the pool. It returns the
// state of the chunk tree that it saw. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WalkChunks(fn func(*Chunk) error) (ChunkTreeState, error) {
	var (
		chunk Chunk
		state ChunkTreeState
	)
	// From the first key on, so that the device items take part in the state.
	err := f.walkTree(treeRange{tree: treeChunk, maxObject: objectFirstChunk, maxType: itemChunk}, func(it *treeItem) error {
		state.add(it)
		if it.itemType != itemChunk || it.objectID != objectFirstChunk {
			return nil
		}
		if err := parseChunk(it.offset, it.data, &chunk); err != nil {
			return err
		}
		return fn(&chunk)
	})
	if err != nil {
		return ChunkTreeState{}, fmt.Errorf("%s: walk the chunk tree: %w", f.path, err)
	}
	f.settle(&state)
	return state, nil
}

// ChunkTreeState tells whether a chunk tree is the one seen before: the
// highest transaction that wrote one of its leaves, and a hash of the items in
// the leaves of that transaction.
//
// It is exact. Whatever makes, removes or moves a chunk also writes the device
// items, which stand in the same tree (btrfs_update_device in
// fs/btrfs/volumes.c), so at least one leaf is written: by a later
// transaction, which shows in the transaction number, or by the same one,
// which shows in the hash.
type ChunkTreeState struct {
	transID uint64
	hash    uint64
	// settled: the transaction had ended when the tree was read, so that only
	// a later one can change it.
	settled bool
}

// settle notes whether the last transaction that wrote the tree had ended when
// the filesystem was opened. The kernel starts none before the one before has
// made its last change to a tree (join_transaction in fs/btrfs/transaction.c).
func (f *Filesystem) settle(s *ChunkTreeState) {
	s.settled = s.transID < f.info.generation
}

func (s *ChunkTreeState) add(it *treeItem) {
	if it.transID < s.transID {
		return
	}
	if it.transID > s.transID {
		*s = ChunkTreeState{transID: it.transID, hash: fnvOffset}
	}
	s.hash = fnvAdd(s.hash, it.objectID, uint64(it.itemType), it.offset)
	s.hash = fnvAddBytes(s.hash, it.data)
}

// ChunkTreeChanged reports whether the chunk tree differs from the state that
// WalkChunks returned. The kernel skips every leaf that is older than that
// state without reading it (btrfs_search_forward in fs/btrfs/ctree.c). Once a
// later transaction has begun, which seen then remembers, one look at the root
// of the tree is enough; until then the cost is that of the leaves written
// last. Needs CAP_SYS_ADMIN.
func (f *Filesystem) ChunkTreeChanged(seen *ChunkTreeState) (bool, error) {
	changed, err := f.chunkTreeChanged(seen)
	if err != nil {
		return false, fmt.Errorf("%s: look for changes of the chunk tree: %w", f.path, err)
	}
	return changed, nil
}

func (f *Filesystem) chunkTreeChanged(seen *ChunkTreeState) (bool, error) {
	keys := treeRange{tree: treeChunk, maxObject: objectFirstChunk, maxType: itemChunk, minTransID: seen.transID}
	if seen.settled {
		keys.minTransID++
		changed := false
		err := f.walkTree(keys, func(*treeItem) error {
			changed = true
			return errStopWalk
		})
		if errors.Is(err, errStopWalk) {
			err = nil
		}
		return changed, err
	}
	var now ChunkTreeState
	err := f.walkTree(keys, func(it *treeItem) error {
		now.add(it)
		return nil
	})
	if err != nil || now.transID != seen.transID || now.hash != seen.hash {
		return err == nil, err
	}
	f.settle(seen)
	return false, nil
}

// errStopWalk ends a walk whose answer is known.
var errStopWalk = errors.New("stop")

// DeviceExtent is a piece of a device that a chunk occupies. Sizes are bytes.
type DeviceExtent struct {
	DevID  uint64 `json:"devid"`
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
	Chunk  uint64 `json:"chunk"` // the chunk's logical address
}

// WalkDeviceExtents calls fn for each device extent, in order of device and
// offset. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WalkDeviceExtents(fn func(DeviceExtent) error) error {
	err := f.walkTree(treeRange{
		tree: treeDevice, minObject: 1, maxObject: math.MaxUint64, minType: itemDeviceExtent, maxType: itemDeviceExtent,
	}, func(it *treeItem) error {
		if it.itemType != itemDeviceExtent {
			return nil
		}
		e, err := parseDeviceExtent(it.objectID, it.offset, it.data)
		if err != nil {
			return err
		}
		return fn(e)
	})
	if err != nil {
		return fmt.Errorf("%s: walk the device extents: %w", f.path, err)
	}
	return nil
}

func (f *Filesystem) ioctl(request uint32, arg unsafe.Pointer) error {
	return ioctlOn(f.fd, request, arg)
}

func ioctlOn(fd int, request uint32, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}
