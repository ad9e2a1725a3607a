package damage

import (
	"errors"
	"fmt"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// ErrParity says that the chunk is of raid5 or raid6, of which single copies
// cannot be told.
var ErrParity = errors.New("raid5 and raid6 are not supported")

// place is where a copy of a byte lies.
type place struct {
	devid, physical uint64
}

// places returns the copies of the byte at a logical address of a chunk, in
// the order of the kernel's mirror numbers, and how many bytes from there on
// lie together (btrfs_map_block in fs/btrfs/volumes.c).
func places(c *btrfs.Chunk, logical uint64) (copies []place, together uint64, err error) {
	if logical < c.Logical || logical-c.Logical >= c.Length {
		return nil, 0, fmt.Errorf("chunk %d does not have address %d", c.Logical, logical)
	}
	offset := logical - c.Logical
	attributes := c.Profile.Attributes()
	if attributes.Parity > 0 {
		return nil, 0, fmt.Errorf("chunk %d: %w", c.Logical, ErrParity)
	}
	if c.Profile != btrfs.RAID0 && c.Profile != btrfs.RAID10 {
		for _, s := range c.Stripes {
			copies = append(copies, place{s.DevID, s.Offset + offset})
		}
		return copies, c.Length - offset, nil
	}
	number, within := offset/stripeLength, offset%stripeLength
	sub := uint64(attributes.SubStripes)
	groups := uint64(len(c.Stripes)) / sub
	if groups == 0 {
		return nil, 0, fmt.Errorf("chunk %d: %d stripes are too few for %s", c.Logical, len(c.Stripes), c.Profile)
	}
	for i := range sub {
		s := c.Stripes[number%groups*sub+i]
		copies = append(copies, place{s.DevID, s.Offset + number/groups*stripeLength + within})
	}
	return copies, stripeLength - within, nil
}
