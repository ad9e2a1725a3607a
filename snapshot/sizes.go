package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// SizesInfo says how the sizes of snapshots were found.
type SizesInfo struct {
	// Method is qgroups, where the filesystem has quotas on and counts metadata
	// too, or extents, which are file data only.
	Method string `json:"method"`
	// Seconds is how long it took, Extents how many references were looked at,
	// and Lookups how many of their extents the kernel was asked about.
	Seconds float64 `json:"seconds"`
	Extents uint64  `json:"extents"`
	Lookups uint64  `json:"lookups"`
}

// addSizes finds what deleting each snapshot would give back.
func addSizes(ctx context.Context, f *btrfs.Filesystem, live map[uint64]btrfs.Subvolume, snapshots []Snapshot) (*SizesInfo, error) {
	start := time.Now()
	exclusive, ok, err := f.QgroupExclusive()
	if err != nil {
		return nil, err
	}
	info := &SizesInfo{Method: "qgroups"}
	if !ok {
		info.Method = "extents"
		if exclusive, err = newSizer(ctx, f, live, info).sizes(snapshots); err != nil {
			return nil, err
		}
	}
	for i := range snapshots {
		if n, known := exclusive[snapshots[i].ID]; known {
			snapshots[i].Exclusive = &n
		}
	}
	info.Seconds = time.Since(start).Seconds()
	return info, nil
}

// sizer sums up the extents that only one snapshot refers to.
//
// What a snapshot has that the one before has not, stands in leaves of its tree
// that were written since that was taken; the kernel skips all others. Of these
// extents most are found again in the next snapshot, in the same place of the
// same file, at the cost of one search. Only for those that are not is the
// kernel asked who refers to them, which is dear where many do.
type sizer struct {
	ctx  context.Context //nolint:containedctx // of one walk
	f    *btrfs.Filesystem
	info *SizesInfo
	// neighbours are the snapshots of a subvolume and itself, the oldest first.
	neighbours map[btrfs.UUID][]btrfs.Subvolume
	owners     map[uint64]uint64 // of extents: the only subvolume that has it, or 0
}

func newSizer(ctx context.Context, f *btrfs.Filesystem, live map[uint64]btrfs.Subvolume, info *SizesInfo) *sizer {
	s := &sizer{ctx: ctx, f: f, info: info, neighbours: make(map[btrfs.UUID][]btrfs.Subvolume), owners: make(map[uint64]uint64)}
	for id := range live {
		v := live[id]
		if v.ParentUUID.IsZero() {
			continue
		}
		s.neighbours[v.ParentUUID] = append(s.neighbours[v.ParentUUID], v)
	}
	for source, all := range s.neighbours {
		slices.SortFunc(all, func(a, b btrfs.Subvolume) int {
			return cmp.Or(cmp.Compare(a.OTransID, b.OTransID), cmp.Compare(a.ID, b.ID))
		})
		for id := range live {
			if live[id].UUID == source {
				all = append(all, live[id])
			}
		}
		s.neighbours[source] = all
	}
	return s
}

func (s *sizer) sizes(snapshots []Snapshot) (map[uint64]uint64, error) {
	sizes := make(map[uint64]uint64, len(snapshots))
	wanted := make(map[uint64]bool, len(snapshots))
	for i := range snapshots {
		wanted[snapshots[i].ID] = true
	}
	for _, all := range s.neighbours {
		for i := range all {
			if !wanted[all[i].ID] {
				continue
			}
			var before, after *btrfs.Subvolume
			if i > 0 {
				before = &all[i-1]
			}
			if i+1 < len(all) {
				after = &all[i+1]
			}
			n, err := s.exclusive(&all[i], before, after)
			if errors.Is(err, unix.ENOENT) {
				continue // deleted meanwhile
			}
			if err != nil {
				return nil, err
			}
			sizes[all[i].ID] = n
		}
	}
	return sizes, nil
}

// exclusive returns the bytes of extents that only this subvolume refers to.
func (s *sizer) exclusive(v, before, after *btrfs.Subvolume) (uint64, error) {
	var since uint64
	// One that was changed since no longer has all that it had then.
	if before != nil && before.ReadOnly && before.CTransID <= before.OTransID {
		since = before.OTransID + 1
	}
	counted := make(map[uint64]bool)
	var sum uint64
	err := s.f.WalkFileExtents(v.ID, since, func(e btrfs.FileExtent) error {
		if s.info.Extents++; s.info.Extents%1000 == 0 && s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		if counted[e.Logical] {
			return nil
		}
		for _, other := range []*btrfs.Subvolume{after, before} {
			if other == nil || other == before && since > 0 && e.Generation >= since {
				continue // it is younger than that one
			}
			same, ok, err := s.f.FileExtentAt(other.ID, e.Inode, e.Offset)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			if ok && same.Logical == e.Logical {
				return nil
			}
		}
		owner, err := s.owner(e.Logical)
		if err != nil {
			return err
		}
		if owner == v.ID {
			counted[e.Logical] = true
			sum += e.Bytes
		}
		return nil
	})
	return sum, err
}

// maxOwners bounds what is remembered of extents: some 50 MiB.
const maxOwners = 1 << 20

// owner returns the only subvolume that refers to an extent, 0 if several do.
func (s *sizer) owner(logical uint64) (uint64, error) {
	if id, known := s.owners[logical]; known {
		return id, nil
	}
	s.info.Lookups++
	owners, complete, err := s.f.ExtentOwners(logical)
	if errors.Is(err, unix.ENOENT) {
		err = nil // freed meanwhile
	}
	if err != nil {
		return 0, fmt.Errorf("extent %d: %w", logical, err)
	}
	var only uint64
	if complete && len(owners) == 1 {
		only = owners[0]
	}
	if len(s.owners) < maxOwners {
		s.owners[logical] = only
	}
	return only, nil
}
