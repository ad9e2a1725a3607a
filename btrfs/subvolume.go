package btrfs

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Subvolume is what the root tree tells of a subvolume. A snapshot is one that
// has a parent UUID and no received UUID.
type Subvolume struct {
	ID uint64 `json:"id"`
	// Parent, Directory and Name say where it lies: in the directory of that
	// inode number of the subvolume Parent. Parent is 0 for the top of the
	// filesystem.
	Parent    uint64 `json:"parent"`
	Directory uint64 `json:"directory"`
	Name      string `json:"name"`

	UUID         UUID `json:"uuid"`
	ParentUUID   UUID `json:"parent_uuid,omitzero"`   // of the subvolume that it is a snapshot of
	ReceivedUUID UUID `json:"received_uuid,omitzero"` // of the one that was sent
	ReadOnly     bool `json:"read_only"`

	// CTransID is the transaction that last changed an inode in it, OTransID the
	// one that made it.
	CTransID uint64 `json:"ctransid"`
	OTransID uint64 `json:"otransid"`
	// Created is when it was made, by the clock of the machine.
	Created time.Time `json:"created"`
	// Deleted: it lies nowhere. It is gone for everybody, and its space is being
	// given back; or it is just being renamed.
	Deleted bool `json:"-"`
}

// Layout of struct btrfs_root_item in include/uapi/linux/btrfs_tree.h. What
// follows generation_v2 counts only where that is the generation: before kernel
// 3.6 it was not written.
const (
	rootItemGeneration   = 160
	rootItemFlags        = 208
	rootItemGeneration2  = 239
	rootItemUUID         = 247
	rootItemParentUUID   = 263
	rootItemReceivedUUID = 279
	rootItemCTransID     = 295
	rootItemOTransID     = 303
	rootItemOTime        = 339
	rootItemSize         = 439
	rootItemOldSize      = 239

	rootFlagReadOnly = 1 << 0
)

// parseRootItem fills in what the item says; names and places are in another
// one.
func parseRootItem(id uint64, data []byte, s *Subvolume) error {
	if len(data) < rootItemOldSize {
		return fmt.Errorf("root item of subvolume %d has %d bytes, less than %d", id, len(data), rootItemOldSize)
	}
	le := binary.LittleEndian
	*s = Subvolume{
		ID:       id,
		ReadOnly: le.Uint64(data[rootItemFlags:])&rootFlagReadOnly != 0,
	}
	if len(data) < rootItemSize || le.Uint64(data[rootItemGeneration2:]) != le.Uint64(data[rootItemGeneration:]) {
		return nil
	}
	copy(s.UUID[:], data[rootItemUUID:])
	copy(s.ParentUUID[:], data[rootItemParentUUID:])
	copy(s.ReceivedUUID[:], data[rootItemReceivedUUID:])
	s.CTransID = le.Uint64(data[rootItemCTransID:])
	s.OTransID = le.Uint64(data[rootItemOTransID:])
	s.Created = time.Unix(int64(le.Uint64(data[rootItemOTime:])), int64(le.Uint32(data[rootItemOTime+8:]))).UTC()
	return nil
}

// rootRef is struct btrfs_root_ref: where a subvolume lies in its parent.
type rootRef struct {
	directory uint64
	name      string
}

func parseRootRef(data []byte) (rootRef, error) {
	if len(data) < rootRefHeader {
		return rootRef{}, fmt.Errorf("root reference has %d bytes, less than %d", len(data), rootRefHeader)
	}
	n := int(binary.LittleEndian.Uint16(data[16:]))
	if n == 0 || len(data) < rootRefHeader+n {
		return rootRef{}, fmt.Errorf("root reference of %d bytes has a name of %d", len(data), n)
	}
	return rootRef{binary.LittleEndian.Uint64(data), string(data[rootRefHeader : rootRefHeader+n])}, nil
}
