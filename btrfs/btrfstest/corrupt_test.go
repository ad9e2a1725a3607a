//go:build linux

package btrfstest

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPhysicalFindsTheDataOfEachProfile(t *testing.T) {
	tests := []struct {
		profile string
		copies  int
	}{
		{"single", 1}, {"dup", 2}, {"raid0", 1}, {"raid1", 2}, {"raid1c3", 3},
		{"raid1c4", 4}, {"raid10", 2}, {"raid5", 1}, {"raid6", 1},
	}
	rig := New(t)
	for _, test := range tests {
		t.Run(test.profile, func(t *testing.T) {
			pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib, gib, gib, gib, gib}, Data: test.profile, Metadata: "raid1"})
			const size = 4 * 1 << 20
			ok(t, pool.WriteFile("file", size, newRandom()))
			ok(t, pool.Sync())
			data, err := os.ReadFile(pool.Path("file"))
			ok(t, err)
			// All stripes of several rows, and not from the first byte.
			for offset := int64(4096); offset < size; offset += stripeLength / 2 {
				locations, err := pool.Physical("file", offset)
				ok(t, err)
				if len(locations) != test.copies {
					t.Fatalf("byte %d has %d copies, want %d", offset, len(locations), test.copies)
				}
				for mirror, at := range locations {
					onDisk := make([]byte, sectorSize)
					readImage(t, pool.Disk(at.DevID), at.Physical, onDisk)
					if !bytes.Equal(onDisk, data[offset:offset+sectorSize]) {
						t.Fatalf("byte %d is not at %d of disk %d (mirror %d)", offset, at.Physical, at.DevID, mirror)
					}
				}
			}
			ok(t, pool.Unmount())
		})
	}
}

func readImage(t *testing.T, disk *Disk, offset int64, data []byte) {
	t.Helper()
	image, err := os.Open(disk.Image)
	ok(t, err)
	defer image.Close()
	if _, err := image.ReadAt(data, offset); err != nil {
		t.Fatal(err)
	}
}

func TestCorruptionOfOneMirrorIsCorrected(t *testing.T) {
	for _, directIO := range []bool{false, true} {
		rig := New(t)
		pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", DirectIO: directIO})
		ok(t, pool.WriteFile("file", mib, newRandom()))
		want, err := os.ReadFile(pool.Path("file"))
		ok(t, err)
		locations, err := pool.Physical("file", 8192)
		ok(t, err)

		for mirror, at := range locations {
			ok(t, pool.CorruptFile("file", 8192, mirror))
			bad := make([]byte, sectorSize)
			readImage(t, pool.Disk(at.DevID), at.Physical, bad)
			// Which mirror a read takes is up to the kernel, and it may take
			// the good one each time. Scrub reads them all.
			_, err := runCommand("btrfs", "scrub", "start", "-B", pool.Mountpoint)
			ok(t, err)
			if count := deviceErrors(t, pool, at.DevID, "corruption_errs"); count != 1 {
				t.Errorf("disk %d counts %d corruption errors, want 1", at.DevID, count)
			}
			ok(t, pool.DropCaches())
			got, err := os.ReadFile(pool.Path("file"))
			ok(t, err)
			if !bytes.Equal(got, want) {
				t.Error("the file is not what was written")
			}
			repaired := make([]byte, sectorSize)
			readImage(t, pool.Disk(at.DevID), at.Physical, repaired)
			if bytes.Equal(repaired, bad) || !bytes.Equal(repaired, want[8192:8192+sectorSize]) {
				t.Errorf("mirror %d was not repaired", mirror)
			}
		}
	}
}

func TestCorruptionOfAllMirrorsIsAnError(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	ok(t, pool.WriteFile("file", mib, newRandom()))
	ok(t, pool.CorruptFile("file", 0, AllMirrors))
	if _, err := os.ReadFile(pool.Path("file")); !errors.Is(err, unix.EIO) {
		t.Errorf("reading the file: %v, want EIO", err)
	}
	errs := deviceErrors(t, pool, 1, "corruption_errs") + deviceErrors(t, pool, 2, "corruption_errs")
	if errs == 0 {
		t.Error("no device counts a corruption error")
	}
}

func TestHoleHasNoPlaceOnTheDisks(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib}})
	ok(t, makeSparse(pool.Path("hole"), mib))
	if _, err := pool.Physical("hole", 0); !errors.Is(err, unix.ENXIO) {
		t.Errorf("error is %v, want ENXIO", err)
	}
}
