package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	treeQuota        = 8
	itemExtentData   = 108
	itemQgroupStatus = 240
	itemQgroupInfo   = 242

	// Layout of struct btrfs_file_extent_item.
	extentItemType      = 20
	extentItemDiskStart = 21
	extentItemDiskBytes = 29
	extentItemSize      = 53
	extentInline        = 0

	// Layout of struct btrfs_qgroup_status_item and its flags, and of
	// struct btrfs_qgroup_info_item.
	qgroupStatusFlags        = 16
	qgroupStatusSize         = 32
	qgroupStatusOn           = 1 << 0
	qgroupStatusRescan       = 1 << 1
	qgroupStatusInconsistent = 1 << 2
	qgroupStatusSimple       = 1 << 3
	qgroupInfoExclusive      = 24
	qgroupInfoSize           = 40

	logicalInoIgnoreOffset = 1 << 0
)

// FileExtent is a reference of a file to an extent of data on the disks.
type FileExtent struct {
	Inode  uint64
	Offset uint64 // in the file, in bytes
	// Generation is the transaction that wrote the extent.
	Generation uint64
	// Logical is where the extent begins, Bytes how long it is on the disks: all
	// of it, however little of it the file refers to.
	Logical, Bytes uint64
}

func parseFileExtent(it *treeItem) (e FileExtent, ok bool, err error) {
	if len(it.data) <= extentItemType {
		return e, false, fmt.Errorf("file extent (%d %d) has %d bytes", it.objectID, it.offset, len(it.data))
	}
	if it.data[extentItemType] == extentInline {
		return e, false, nil
	}
	if len(it.data) < extentItemSize {
		return e, false, fmt.Errorf("file extent (%d %d) has %d bytes, less than %d", it.objectID, it.offset, len(it.data), extentItemSize)
	}
	le := binary.LittleEndian
	e = FileExtent{
		Inode: it.objectID, Offset: it.offset, Generation: le.Uint64(it.data),
		Logical: le.Uint64(it.data[extentItemDiskStart:]), Bytes: le.Uint64(it.data[extentItemDiskBytes:]),
	}
	return e, e.Logical != 0, nil // a hole has none
}

// WalkFileExtents calls fn for each reference to an extent in a subvolume, in
// leaves of its tree that were written in transaction since or later. Inline
// data and holes have none. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WalkFileExtents(subvolume, since uint64, fn func(FileExtent) error) error {
	err := f.walkTree(treeRange{
		tree: subvolume, minObject: objectFirstFree, maxObject: objectLast, minTransID: since, maxType: math.MaxUint8,
	}, func(it *treeItem) error {
		if it.itemType != itemExtentData {
			return nil
		}
		e, ok, err := parseFileExtent(it)
		if err != nil || !ok {
			return err
		}
		return fn(e)
	})
	if err != nil {
		return fmt.Errorf("%s: extents of subvolume %d: %w", f.path, subvolume, err)
	}
	return nil
}

// FileExtentAt returns what a file refers to at an offset at which a reference
// begins; ok is false if none does. Needs CAP_SYS_ADMIN.
func (f *Filesystem) FileExtentAt(subvolume, inode, offset uint64) (e FileExtent, ok bool, err error) {
	err = f.walkTree(treeRange{
		tree: subvolume, minObject: inode, maxObject: inode, minType: itemExtentData, maxType: itemExtentData, minOffset: offset, most: 1,
	}, func(it *treeItem) error {
		if it.objectID == inode && it.itemType == itemExtentData && it.offset == offset {
			var err error
			if e, ok, err = parseFileExtent(it); err != nil {
				return err
			}
		}
		return errStopWalk
	})
	if err != nil && !errors.Is(err, errStopWalk) {
		return FileExtent{}, false, fmt.Errorf("%s: extent at %d of inode %d in subvolume %d: %w", f.path, offset, inode, subvolume, err)
	}
	return e, ok, nil
}

// ExtentOwners returns which subvolumes refer to any part of the extent that
// begins at a logical address, each once; complete is false where there are more
// references than fit in one answer. unix.ENOENT says that none does. Needs
// CAP_SYS_ADMIN.
func (f *Filesystem) ExtentOwners(logical uint64) (subvolumes []uint64, complete bool, err error) {
	answer := new(dataContainer)
	args := logicalInoArgs{
		logical: logical, size: logicalInoBufferSize, flags: logicalInoIgnoreOffset, inodes: uint64(uintptr(unsafe.Pointer(answer))),
	}
	err = f.ioctl(ioctlLogicalInoV2, unsafe.Pointer(&args))
	runtime.KeepAlive(answer)
	if err != nil {
		return nil, false, fmt.Errorf("%s: BTRFS_IOC_LOGICAL_INO_V2 of %d: %w", f.path, logical, err)
	}
	seen := make(map[uint64]bool)
	n := min(int(answer.elements), len(answer.values))
	for i := 0; i+2 < n; i += 3 {
		if id := answer.values[i+2]; !seen[id] {
			seen[id] = true
			subvolumes = append(subvolumes, id)
		}
	}
	return subvolumes, answer.elementsMissed == 0, nil
}

// QgroupExclusive returns how many bytes, metadata included, only that subvolume
// refers to, for each subvolume, as the quotas of the filesystem count. ok is
// false where they are off, are being counted anew, or are simple ones, which
// count to whom an extent belongs and not who shares it. Needs CAP_SYS_ADMIN.
func (f *Filesystem) QgroupExclusive() (exclusive map[uint64]uint64, ok bool, err error) {
	exclusive = make(map[uint64]uint64)
	err = f.walkTree(treeRange{tree: treeQuota, minType: itemQgroupStatus, maxType: itemQgroupInfo}, func(it *treeItem) error {
		switch it.itemType {
		case itemQgroupStatus:
			if len(it.data) < qgroupStatusSize {
				return fmt.Errorf("status of the quotas has %d bytes, less than %d", len(it.data), qgroupStatusSize)
			}
			flags := binary.LittleEndian.Uint64(it.data[qgroupStatusFlags:])
			ok = flags&qgroupStatusOn != 0 && flags&(qgroupStatusRescan|qgroupStatusInconsistent|qgroupStatusSimple) == 0
		case itemQgroupInfo:
			// Those of subvolumes are of level 0, and have their ids.
			if len(it.data) >= qgroupInfoSize && it.offset>>48 == 0 {
				exclusive[it.offset] = binary.LittleEndian.Uint64(it.data[qgroupInfoExclusive:])
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) { // no quota tree
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s: quotas: %w", f.path, err)
	}
	return exclusive, ok, nil
}
