//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	leastFillStep   = 64 << 10  // 64 KiB, the stripe length of btrfs
	usualFillStep   = 256 << 20 // the longest extent that fallocate makes
	largestFillFile = 512 << 40 // a new file from here, far below the limit of 8 EiB
)

// FillFallocate allocates file data until the pool has no more to give, and
// returns how many bytes that was. No data is written: a terabyte takes about as
// long as the kernel needs to make its thousand block groups. It is the oracle
// of free space: what the kernel's data allocator really gives, to the last
// 64 KiB.
//
// It fails when the pool refuses for another reason than ENOSPC.
func (p *Pool) FillFallocate() (int64, error) {
	var total int64
	for {
		allocated, err := p.fillPass()
		total += allocated
		if err != nil {
			return total, fmt.Errorf("fill pool %s: %w", p.UUID, err)
		}
		if allocated == 0 {
			return total, nil
		}
		// A commit gives back extents that were pinned and reservations that
		// were not used: there may be more now.
		if err := p.Sync(); errors.Is(err, unix.ENOSPC) {
			return total, nil // where data and metadata share block groups
		} else if err != nil {
			return total, err
		}
	}
}

// fillPass fills in steps that halve once one does not fit, and returns the
// bytes allocated.
//
// A step must not ask for much more than there is. Before the kernel refuses it
// makes all the block groups it can; the cleaner then removes those that are
// still empty, in any order, and what is made in their stead comes to lie
// elsewhere. On a pool of mismatched disks that changes how much fits.
func (p *Pool) fillPass() (int64, error) {
	file, err := os.OpenFile(p.newFile("fill"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, unix.ENOSPC) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var end, step int64
	for refused := false; end < largestFillFile; {
		if !refused {
			if step, err = p.fillStep(); err != nil {
				return 0, err
			}
		}
		err := fallocate(file, end, step)
		switch {
		case err == nil:
			end += step
			continue
		case !errors.Is(err, unix.ENOSPC):
			return 0, err
		}
		// The kernel keeps what it had allocated before it failed.
		if end, err = endOf(file); err != nil {
			return 0, err
		}
		refused = true
		if step /= 2; step < leastFillStep {
			break
		}
	}
	return allocatedBytes(file)
}

// fillStep is how much to ask for next: little, but more where there surely is
// much more, because each call looks at every full block group once.
func (p *Pool) fillStep() (int64, error) {
	available, err := p.available()
	if err != nil {
		return 0, err
	}
	return max(usualFillStep, available/8/usualFillStep*usualFillStep), nil
}

// endOf is the size of a file, rounded up to the least step.
func endOf(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return (info.Size() + leastFillStep - 1) / leastFillStep * leastFillStep, nil
}

// allocatedBytes is the space that the data of a file takes, copies of it not
// counted.
func allocatedBytes(file *os.File) (int64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return 0, err
	}
	return stat.Blocks * 512, nil
}
