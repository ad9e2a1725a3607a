// Package capacity tells what a btrfs filesystem can still hold, by playing
// through the decisions of the kernel's chunk allocator, and what the loss of
// devices would cost.
//
// Everything here is a pure function of a btrfs.Pool and a Layout, where its
// chunks lie. The rules are those of fs/btrfs/volumes.c (gather_device_info,
// decide_stripe_size_regular, find_free_dev_extent) and
// fs/btrfs/block-group.c (btrfs_reduce_alloc_profile, exclude_super_stripes)
// of kernel 5.15 to 6.18. All sizes are bytes.
package capacity
