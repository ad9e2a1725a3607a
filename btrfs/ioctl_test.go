package btrfs

import (
	"testing"
	"unsafe"
)

// The numbers and offsets are those of include/uapi/linux/btrfs.h as a C
// compiler gives them, the same on every architecture that we build for.
func TestIoctlNumbersAndSizes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want uint32
	}{
		{"BTRFS_IOC_TREE_SEARCH_V2", ioctlTreeSearchV2, 0xc0709411},
		{"BTRFS_IOC_SPACE_INFO", ioctlSpaceInfo, 0xc0109414},
		{"BTRFS_IOC_DEV_INFO", ioctlDevInfo, 0xd000941e},
		{"BTRFS_IOC_FS_INFO", ioctlFSInfo, 0x8400941f},
		{"BTRFS_IOC_BALANCE_PROGRESS", ioctlBalanceProgress, 0x84009422},
		{"BTRFS_IOC_GET_DEV_STATS", ioctlGetDevStats, 0xc4089434},
		{"BTRFS_IOC_SCRUB", ioctlScrub, 0xc400941b},
		{"BTRFS_IOC_SCRUB_CANCEL", ioctlScrubCancel, 0x941c},
		{"BTRFS_IOC_SCRUB_PROGRESS", ioctlScrubProgress, 0xc400941d},
		{"BTRFS_IOC_INO_LOOKUP", ioctlInoLookup, 0xd0009412},
		{"BTRFS_IOC_LOGICAL_INO_V2", ioctlLogicalInoV2, 0xc038943b},
		{"BTRFS_IOC_SNAP_CREATE_V2", ioctlSnapCreateV2, 0x50009417},
		{"BTRFS_IOC_SNAP_DESTROY_V2", ioctlSnapDestroyV2, 0x5000943f},
		{"BTRFS_IOC_START_SYNC", ioctlStartSync, 0x80089418},
		{"BTRFS_IOC_WAIT_SYNC", ioctlWaitSync, 0x40089416},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %#x, want %#x", tt.name, tt.got, tt.want)
		}
	}
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"btrfs_ioctl_fs_info_args", unsafe.Sizeof(fsInfoArgs{}), 1024},
		{"btrfs_ioctl_dev_info_args", unsafe.Sizeof(devInfoArgs{}), 4096},
		{"btrfs_ioctl_get_dev_stats", unsafe.Sizeof(devStatsArgs{}), 1032},
		{"btrfs_ioctl_space_args", unsafe.Offsetof(spaceArgs{}.spaces), 16},
		{"btrfs_ioctl_space_info", unsafe.Sizeof(spaceInfo{}), 24},
		{"btrfs_ioctl_search_key", unsafe.Sizeof(searchKey{}), 104},
		{"btrfs_ioctl_search_args_v2", unsafe.Sizeof(searchArgsV2{}), 112},
		{"btrfs_balance_args", unsafe.Sizeof(balanceFilter{}), 136},
		{"btrfs_ioctl_balance_args", unsafe.Sizeof(balanceArgs{}), 1024},
		{"btrfs_scrub_progress", unsafe.Sizeof(ScrubCounters{}), 120},
		{"btrfs_ioctl_scrub_args", unsafe.Sizeof(scrubArgs{}), 1024},
		{"btrfs_ioctl_ino_lookup_args", unsafe.Sizeof(inoLookupArgs{}), 4096},
		{"btrfs_ioctl_logical_ino_args", unsafe.Sizeof(logicalInoArgs{}), 56},
		{"btrfs_ioctl_vol_args_v2", unsafe.Sizeof(volumeArgsV2{}), 4096},
		{"btrfs_data_container with its room", unsafe.Sizeof(dataContainer{}), logicalInoBufferSize},
	} {
		if tt.got != tt.want {
			t.Errorf("struct %s has %d bytes, want %d", tt.name, tt.got, tt.want)
		}
	}
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"vol_args_v2.flags", unsafe.Offsetof(volumeArgsV2{}.flags), 16},
		{"vol_args_v2.name", unsafe.Offsetof(volumeArgsV2{}.name), 56},
		{"fs_info.max_id", unsafe.Offsetof(fsInfoArgs{}.maxID), 0},
		{"fs_info.num_devices", unsafe.Offsetof(fsInfoArgs{}.numDevices), 8},
		{"fs_info.fsid", unsafe.Offsetof(fsInfoArgs{}.fsid), 16},
		{"fs_info.nodesize", unsafe.Offsetof(fsInfoArgs{}.nodesize), 32},
		{"fs_info.sectorsize", unsafe.Offsetof(fsInfoArgs{}.sectorsize), 36},
		{"fs_info.clone_alignment", unsafe.Offsetof(fsInfoArgs{}.cloneAlignment), 40},
		{"fs_info.csum_type", unsafe.Offsetof(fsInfoArgs{}.csumType), 44},
		{"fs_info.csum_size", unsafe.Offsetof(fsInfoArgs{}.csumSize), 46},
		{"fs_info.flags", unsafe.Offsetof(fsInfoArgs{}.flags), 48},
		{"fs_info.generation", unsafe.Offsetof(fsInfoArgs{}.generation), 56},
		{"fs_info.metadata_uuid", unsafe.Offsetof(fsInfoArgs{}.metadataUUID), 64},

		{"dev_info.devid", unsafe.Offsetof(devInfoArgs{}.devid), 0},
		{"dev_info.uuid", unsafe.Offsetof(devInfoArgs{}.uuid), 8},
		{"dev_info.bytes_used", unsafe.Offsetof(devInfoArgs{}.bytesUsed), 24},
		{"dev_info.total_bytes", unsafe.Offsetof(devInfoArgs{}.totalBytes), 32},
		{"dev_info.fsid", unsafe.Offsetof(devInfoArgs{}.fsid), 40},
		{"dev_info.path", unsafe.Offsetof(devInfoArgs{}.path), 3072},

		{"dev_stats.devid", unsafe.Offsetof(devStatsArgs{}.devid), 0},
		{"dev_stats.nr_items", unsafe.Offsetof(devStatsArgs{}.items), 8},
		{"dev_stats.flags", unsafe.Offsetof(devStatsArgs{}.flags), 16},
		{"dev_stats.values", unsafe.Offsetof(devStatsArgs{}.values), 24},

		{"space_args.space_slots", unsafe.Offsetof(spaceArgs{}.slots), 0},
		{"space_args.total_spaces", unsafe.Offsetof(spaceArgs{}.total), 8},
		{"space_info.flags", unsafe.Offsetof(spaceInfo{}.flags), 0},
		{"space_info.total_bytes", unsafe.Offsetof(spaceInfo{}.total), 8},
		{"space_info.used_bytes", unsafe.Offsetof(spaceInfo{}.used), 16},

		{"search_key.tree_id", unsafe.Offsetof(searchKey{}.treeID), 0},
		{"search_key.min_objectid", unsafe.Offsetof(searchKey{}.minObjectID), 8},
		{"search_key.max_objectid", unsafe.Offsetof(searchKey{}.maxObjectID), 16},
		{"search_key.min_offset", unsafe.Offsetof(searchKey{}.minOffset), 24},
		{"search_key.max_offset", unsafe.Offsetof(searchKey{}.maxOffset), 32},
		{"search_key.min_transid", unsafe.Offsetof(searchKey{}.minTransID), 40},
		{"search_key.max_transid", unsafe.Offsetof(searchKey{}.maxTransID), 48},
		{"search_key.min_type", unsafe.Offsetof(searchKey{}.minType), 56},
		{"search_key.max_type", unsafe.Offsetof(searchKey{}.maxType), 60},
		{"search_key.nr_items", unsafe.Offsetof(searchKey{}.items), 64},
		{"search_args_v2.buf_size", unsafe.Offsetof(searchArgsV2{}.bufferSize), 104},

		{"balance_args.profiles", unsafe.Offsetof(balanceFilter{}.profiles), 0},
		{"balance_args.target", unsafe.Offsetof(balanceFilter{}.target), 56},
		{"balance_args.flags", unsafe.Offsetof(balanceFilter{}.flags), 64},
		{"balance_args.limit", unsafe.Offsetof(balanceFilter{}.limit), 72},
		{"balance_args.stripes_min", unsafe.Offsetof(balanceFilter{}.stripeMin), 80},
		{"ioctl_balance_args.flags", unsafe.Offsetof(balanceArgs{}.flags), 0},
		{"ioctl_balance_args.state", unsafe.Offsetof(balanceArgs{}.state), 8},
		{"ioctl_balance_args.data", unsafe.Offsetof(balanceArgs{}.data), 16},
		{"ioctl_balance_args.meta", unsafe.Offsetof(balanceArgs{}.metadata), 152},
		{"ioctl_balance_args.sys", unsafe.Offsetof(balanceArgs{}.system), 288},
		{"ioctl_balance_args.stat", unsafe.Offsetof(balanceArgs{}.stat), 424},

		{"scrub_args.start", unsafe.Offsetof(scrubArgs{}.start), 8},
		{"scrub_args.end", unsafe.Offsetof(scrubArgs{}.end), 16},
		{"scrub_args.flags", unsafe.Offsetof(scrubArgs{}.flags), 24},
		{"scrub_args.progress", unsafe.Offsetof(scrubArgs{}.progress), 32},
		{"scrub_progress.read_errors", unsafe.Offsetof(ScrubCounters{}.ReadErrors), 32},
		{"scrub_progress.csum_errors", unsafe.Offsetof(ScrubCounters{}.CsumErrors), 40},
		{"scrub_progress.verify_errors", unsafe.Offsetof(ScrubCounters{}.VerifyErrors), 48},
		{"scrub_progress.super_errors", unsafe.Offsetof(ScrubCounters{}.SuperErrors), 72},
		{"scrub_progress.uncorrectable_errors", unsafe.Offsetof(ScrubCounters{}.UncorrectableErrors), 88},
		{"scrub_progress.corrected_errors", unsafe.Offsetof(ScrubCounters{}.CorrectedErrors), 96},
		{"scrub_progress.last_physical", unsafe.Offsetof(ScrubCounters{}.LastPhysical), 104},
		{"scrub_progress.unverified_errors", unsafe.Offsetof(ScrubCounters{}.UnverifiedErrors), 112},

		{"ino_lookup_args.objectid", unsafe.Offsetof(inoLookupArgs{}.objectID), 8},
		{"ino_lookup_args.name", unsafe.Offsetof(inoLookupArgs{}.name), 16},

		{"logical_ino_args.size", unsafe.Offsetof(logicalInoArgs{}.size), 8},
		{"logical_ino_args.flags", unsafe.Offsetof(logicalInoArgs{}.flags), 40},
		{"logical_ino_args.inodes", unsafe.Offsetof(logicalInoArgs{}.inodes), 48},

		{"data_container.elem_cnt", unsafe.Offsetof(dataContainer{}.elements), 8},
		{"data_container.elem_missed", unsafe.Offsetof(dataContainer{}.elementsMissed), 12},
		{"data_container.val", unsafe.Offsetof(dataContainer{}.values), containerHeader},
	} {
		if tt.got != tt.want {
			t.Errorf("field %s is at %d, want %d", tt.name, tt.got, tt.want)
		}
	}
	// The size in a request number and the structure handed over with it.
	for _, tt := range []struct {
		name           string
		number, actual uintptr
	}{
		{"fs_info", sizeFSInfoArgs, unsafe.Sizeof(fsInfoArgs{})},
		{"dev_info", sizeDevInfoArgs, unsafe.Sizeof(devInfoArgs{})},
		{"dev_stats", sizeDevStatsArgs, unsafe.Sizeof(devStatsArgs{})},
		{"space_args", sizeSpaceArgs, unsafe.Offsetof(spaceArgs{}.spaces)},
		{"search_args_v2", sizeSearchArgsV2, unsafe.Sizeof(searchArgsV2{})},
		{"balance_args", sizeBalanceArgs, unsafe.Sizeof(balanceArgs{})},
		{"scrub_args", sizeScrubArgs, unsafe.Sizeof(scrubArgs{})},
		{"ino_lookup_args", sizeInoLookupArgs, unsafe.Sizeof(inoLookupArgs{})},
		{"logical_ino_args", sizeLogicalInoArgs, unsafe.Sizeof(logicalInoArgs{})},
	} {
		if tt.number != tt.actual {
			t.Errorf("%s: the ioctl says %d bytes, the structure has %d", tt.name, tt.number, tt.actual)
		}
	}
}

func TestSearchKeyIncrements(t *testing.T) {
	const most = ^uint64(0)
	for _, tt := range []struct {
		name     string
		from, to searchKey
		more     bool
	}{
		{"offset", searchKey{minObjectID: 256, minType: 228, minOffset: 5}, searchKey{minObjectID: 256, minType: 228, minOffset: 6}, true},
		{"last offset", searchKey{minObjectID: 256, minType: 228, minOffset: most}, searchKey{minObjectID: 256, minType: 229}, true},
		{"last type", searchKey{minObjectID: 256, minType: 255, minOffset: most}, searchKey{minObjectID: 257}, true},
		{"last key", searchKey{minObjectID: most, minType: 255, minOffset: most}, searchKey{}, false},
	} {
		got := tt.from
		if more := got.increment(); more != tt.more || got != tt.to {
			t.Errorf("%s: got %+v %t, want %+v %t", tt.name, got, more, tt.to, tt.more)
		}
	}
}

// The sizes once more, at compile time, for architectures whose programs the
// machine cannot run: a wrong one is an array that cannot be assigned.
var (
	_ [1024]byte = [unsafe.Sizeof(fsInfoArgs{})]byte{}
	_ [4096]byte = [unsafe.Sizeof(devInfoArgs{})]byte{}
	_ [1032]byte = [unsafe.Sizeof(devStatsArgs{})]byte{}
	_ [104]byte  = [unsafe.Sizeof(searchKey{})]byte{}
	_ [112]byte  = [unsafe.Sizeof(searchArgsV2{})]byte{}
	_ [1024]byte = [unsafe.Sizeof(balanceArgs{})]byte{}
	_ [1024]byte = [unsafe.Sizeof(scrubArgs{})]byte{}
	_ [56]byte   = [unsafe.Sizeof(logicalInoArgs{})]byte{}
	_ [4096]byte = [unsafe.Sizeof(inoLookupArgs{})]byte{}
)
