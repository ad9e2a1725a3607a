package btrfs

// The ioctls and structures of include/uapi/linux/btrfs.h that x/sys does not
// have. Every structure is laid out with explicit fields only, no compiler
// padding, so that it is the same on 32- and 64-bit machines;
// TestIoctlNumbersAndSizes holds the sizes.

// ioctl request encoding of include/uapi/asm-generic/ioctl.h, which all
// supported architectures share (not mips, powerpc and sparc).
const (
	iocWrite = 1
	iocRead  = 2

	ioctlMagic = 0x94
)

func ioc(dir, nr, size uint32) uint32 { return dir<<30 | size<<16 | ioctlMagic<<8 | nr }

var (
	ioctlTreeSearchV2    = ioc(iocRead|iocWrite, 17, sizeSearchArgsV2)
	ioctlSpaceInfo       = ioc(iocRead|iocWrite, 20, sizeSpaceArgs)
	ioctlDevInfo         = ioc(iocRead|iocWrite, 30, sizeDevInfoArgs)
	ioctlFSInfo          = ioc(iocRead, 31, sizeFSInfoArgs)
	ioctlBalanceProgress = ioc(iocRead, 34, sizeBalanceArgs)
	ioctlGetDevStats     = ioc(iocRead|iocWrite, 52, sizeDevStatsArgs)
)

const (
	sizeSearchArgsV2 = 112
	sizeSpaceArgs    = 16
	sizeDevInfoArgs  = 4096
	sizeFSInfoArgs   = 1024
	sizeBalanceArgs  = 1024
	sizeDevStatsArgs = 1032
)

// Flags of BTRFS_IOC_FS_INFO: what is asked for and was filled in.
const (
	fsInfoFlagCsum         = 1 << 0
	fsInfoFlagGeneration   = 1 << 1
	fsInfoFlagMetadataUUID = 1 << 2
)

type fsInfoArgs struct {
	maxID          uint64
	numDevices     uint64
	fsid           UUID
	nodesize       uint32
	sectorsize     uint32
	cloneAlignment uint32
	csumType       uint16
	csumSize       uint16
	flags          uint64
	generation     uint64
	metadataUUID   UUID
	_              [944]byte
}

type devInfoArgs struct {
	devid      uint64
	uuid       UUID
	bytesUsed  uint64
	totalBytes uint64
	fsid       UUID // since 6.3; zero before
	_          [377]uint64
	path       [1024]byte
}

type devStatsArgs struct {
	devid  uint64
	items  uint64
	flags  uint64
	values [5]uint64 // write, read, flush, corruption, generation
	_      [121]uint64
}

type spaceArgs struct {
	slots  uint64
	total  uint64
	spaces [maxSpaces]spaceInfo
}

type spaceInfo struct {
	flags uint64
	total uint64
	used  uint64
}

// maxSpaces is more than the kernel can answer: 3 types times 9 profiles and
// the global reserve.
const maxSpaces = 32

type searchKey struct {
	treeID      uint64
	minObjectID uint64
	maxObjectID uint64
	minOffset   uint64
	maxOffset   uint64
	minTransID  uint64
	maxTransID  uint64
	minType     uint32
	maxType     uint32
	items       uint32
	_           uint32
	_           [4]uint64
}

type searchArgsV2 struct {
	key        searchKey
	bufferSize uint64
	// The answer follows.
}

// searchHeaderSize is the size of struct btrfs_ioctl_search_header: transid,
// objectid, offset as u64, type and length as u32.
const searchHeaderSize = 32

type balanceArgs struct {
	flags    uint64
	state    uint64
	data     balanceFilter
	metadata balanceFilter
	system   balanceFilter
	stat     [3]uint64
	_        [72]uint64
}

type balanceFilter struct {
	profiles  uint64
	usage     uint64
	devid     uint64
	pstart    uint64
	pend      uint64
	vstart    uint64
	vend      uint64
	target    uint64
	flags     uint64
	limit     uint64
	stripeMin uint32
	stripeMax uint32
	_         [6]uint64
}

const balanceFilterConvert = 1 << 8

// Trees, object ids and item types of include/uapi/linux/btrfs_tree.h.
const (
	treeChunk  = 3
	treeDevice = 4

	objectFirstChunk = 256

	itemDeviceExtent = 204
	itemChunk        = 228
)
