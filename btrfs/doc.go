// Package btrfs reads the facts of btrfs filesystems from the Linux kernel:
// by ioctl on a mount point, from sysfs and from mountinfo. It changes
// nothing.
//
// A Client finds the mounted filesystems and reads each into a Pool, a plain
// value. What decides anything from the facts lives elsewhere, in pure
// functions (package capacity).
//
// Kernel 5.15 is the floor. Facts about the kernel name the file of the
// kernel tree they were taken from; constants and structure layouts are those
// of include/uapi/linux/btrfs.h and btrfs_tree.h.
package btrfs
