//go:build linux

package btrfstest

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The few ioctls that the rig uses itself, from the kernel's
// include/uapi/linux/btrfs.h. The package btrfs, which the rig helps to test,
// is not used for them.
const (
	iocScanDevice    = 0x50009404 // BTRFS_IOC_SCAN_DEV
	iocForgetDevice  = 0x50009405 // BTRFS_IOC_FORGET_DEV
	iocScrubCancel   = 0x0000941c // BTRFS_IOC_SCRUB_CANCEL
	iocBalanceCtl    = 0x40049421 // BTRFS_IOC_BALANCE_CTL
	iocReplace       = 0xca289435 // BTRFS_IOC_DEV_REPLACE
	balanceCtlCancel = 2          // BTRFS_BALANCE_CTL_CANCEL
	replaceCmdCancel = 2          // BTRFS_IOCTL_DEV_REPLACE_CMD_CANCEL
)

// volumeArgs is struct btrfs_ioctl_vol_args.
type volumeArgs struct {
	fd   int64
	name [4088]byte
}

// replaceArgs is struct btrfs_ioctl_dev_replace_args, of which only the
// command is used.
type replaceArgs struct {
	command uint64
	_       [2592]byte
}

// scanDevice tells btrfs of a device of a filesystem that is to be mounted.
func scanDevice(device string) error {
	if err := deviceControl(iocScanDevice, device); err != nil {
		return fmt.Errorf("scan %s for btrfs: %w", device, err)
	}
	return nil
}

// forgetDevice undoes scanDevice. It makes no difference whether btrfs knew
// the device, and a device in use it keeps.
func forgetDevice(device string) {
	_ = deviceControl(iocForgetDevice, device)
}

func deviceControl(request uint, device string) error {
	control, err := unix.Open("/dev/btrfs-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	var args volumeArgs
	copy(args.name[:len(args.name)-1], device)
	return ioctl(control, request, unsafe.Pointer(&args))
}

// cancelOperations stops a balance, device replace and scrub on a mounted
// pool. None of them running is the usual case and no error.
func cancelOperations(mountpoint string) {
	dir, err := os.Open(mountpoint)
	if err != nil {
		return
	}
	defer dir.Close()
	fd := int(dir.Fd())
	_ = unix.IoctlSetInt(fd, iocBalanceCtl, balanceCtlCancel)
	replace := replaceArgs{command: replaceCmdCancel}
	_ = ioctl(fd, iocReplace, unsafe.Pointer(&replace))
	_ = unix.IoctlSetInt(fd, iocScrubCancel, 0)
}

func ioctl(fd int, request uint, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}
