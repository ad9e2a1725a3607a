// Package btrfstest is the test rig: it makes real btrfs pools out of sparse
// files on loop devices, ages and fills them, takes their disks away, corrupts
// them, and makes their disks fail, hang or answer slowly. It is test code
// only and must not be imported by anything that ships.
//
// A test starts with [New], which skips where the machine cannot run kernel
// tests and cleans up when the test ends:
//
//	rig := btrfstest.New(t)
//	pool, err := rig.NewPool(btrfstest.PoolOptions{
//		Sizes: []int64{8 << 30, 4 << 30, 2 << 30, 1 << 30},
//		Data:  "raid1", Metadata: "raid1",
//	})
//
// Everything a rig makes lives beneath one run directory in [os.TempDir]. The
// owner holds a lock on it, so that [Sweep] can tell the remains of a killed
// run from a run that is still going on, and can never touch a mount or a loop
// device that is not the rig's.
//
// The package needs root, a kernel with btrfs and loop devices, and the
// programs mkfs.btrfs and btrfs; [FaultDir] needs FUSE.
package btrfstest
