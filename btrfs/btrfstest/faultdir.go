//go:build linux

package btrfstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// faultRequestBytes is the largest request that reaches a fault disk, the
	// kernel's own limit (256 pages).
	faultRequestBytes = 1 << 20

	// faultBackground is how many requests the kernel keeps in flight. Its
	// default of 12 holds for the filesystem as a whole: one hung disk would
	// then stop all others.
	faultBackground = 16 << 10
)

// FaultDir is a small FUSE filesystem of disk images, served by this process,
// that can be told to fail, hang or be slow. Its disks are told apart, so that
// one hung disk does not stop another.
type FaultDir struct {
	rig    *Rig
	point  string
	root   *fs.Inode
	served chan struct{} // closed when the directory is no longer served

	mu    sync.Mutex
	disks []*FaultDisk
}

// NewFaultDir mounts a directory for fault disks. The rig unmounts it.
func (r *Rig) NewFaultDir() (*FaultDir, error) {
	d := &FaultDir{rig: r, point: r.newPath("fuse", "faults")}
	if err := d.mount(); err != nil {
		return nil, fmt.Errorf("make fault directory %s: %w", d.point, err)
	}
	r.mu.Lock()
	r.faultDirs = append(r.faultDirs, d)
	r.mu.Unlock()
	return d, nil
}

func (d *FaultDir) mount() error {
	if err := os.Mkdir(d.point, 0o700); err != nil {
		return err
	}
	// The mount is made here and not by go-fuse, which would let every program
	// that the test starts inherit the connection: a hung one would keep it
	// alive after this process has been killed.
	connection, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	mountOptions := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other,max_read=%d", connection, unix.S_IFDIR, faultRequestBytes)
	if err := unix.Mount("btrfstest", d.point, "fuse.btrfstest", unix.MS_NOSUID|unix.MS_NODEV, mountOptions); err != nil {
		unix.Close(connection)
		return fmt.Errorf("mount: %w", err)
	}
	root := &fs.Inode{}
	never := time.Duration(0)
	options := &fs.Options{
		// Attributes are asked for each time: disks grow.
		AttrTimeout: &never,
		MountOptions: fuse.MountOptions{
			MaxBackground: faultBackground,
			MaxWrite:      faultRequestBytes,
			DisableXAttrs: true,
			// It would tell of every request that an abort cut off.
			Logger: log.New(io.Discard, "", 0),
		},
	}
	// go-fuse takes the connection over under this name.
	server, err := fuse.NewServer(fs.NewNodeFS(root, options), "/dev/fd/"+strconv.Itoa(connection), &options.MountOptions)
	if err != nil {
		return errors.Join(err, unix.Unmount(d.point, unix.MNT_DETACH))
	}
	d.root, d.served = root, make(chan struct{})
	go func() {
		defer close(d.served)
		server.Serve() // until the unmount
	}()
	return nil
}

// NewDisk makes a disk whose every request goes through the directory. Its
// Disk can stand in PoolOptions.Disks and wherever a disk can.
func (d *FaultDir) NewDisk(size int64) (*FaultDisk, error) {
	image := d.rig.newPath("images", "fault")
	if err := makeSparse(image, size); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(image)
	disk := &FaultDisk{
		Disk: &Disk{Image: image, Size: size, backing: filepath.Join(d.point, name), directIO: true},
		file: file,
	}
	d.mu.Lock()
	d.disks = append(d.disks, disk)
	d.mu.Unlock()
	node := d.root.NewPersistentInode(context.Background(), &faultNode{disk: disk}, fs.StableAttr{Mode: fuse.S_IFREG})
	d.root.AddChild(name, node, false)
	if err := disk.attach(); err != nil {
		return nil, err
	}
	return disk, nil
}

// releaseAll makes all disks answer again, at once and without errors.
func (d *FaultDir) releaseAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, disk := range d.disks {
		disk.Heal()
		disk.Fast()
		disk.Release()
	}
}

// abort fails everything that waits for the directory's disks, for good.
func (d *FaultDir) abort() {
	// An abort is the last resort of Close, which reports that it came to it.
	_ = abortFUSE(d.rig.dir)
}

// wait waits until the directory, which has been unmounted, is no longer
// served, and closes the images.
func (d *FaultDir) wait() error {
	select {
	case <-d.served:
	case <-time.After(releasePatience):
		return fmt.Errorf("fault directory %s is still served after its unmount", d.point)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, disk := range d.disks {
		errs = append(errs, disk.file.Close())
	}
	return errors.Join(errs...)
}

// faultNode is the file of a fault disk as the kernel sees it.
type faultNode struct {
	fs.Inode
	disk *FaultDisk
}

var (
	_ fs.NodeGetattrer = (*faultNode)(nil)
	_ fs.NodeOpener    = (*faultNode)(nil)
	_ fs.NodeReader    = (*faultNode)(nil)
	_ fs.NodeWriter    = (*faultNode)(nil)
	_ fs.NodeFsyncer   = (*faultNode)(nil)
	_ fs.NodeAllocater = (*faultNode)(nil)
)

// Getattr tells the size. It answers even when the disk is dead or hangs: a
// disk that is attached has a size, and only its I/O fails.
func (n *faultNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(n.disk.file.Fd()), &stat); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&stat)
	return 0
}

// Open turns the kernel's page cache off for the file, so that every request
// reaches the disk, and lets writes run side by side.
func (n *faultNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
}

func (n *faultNode) Read(ctx context.Context, _ fs.FileHandle, dest []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	n.disk.reads.Add(1)
	n.disk.bytesRead.Add(int64(len(dest)))
	if errno := n.disk.admit(ctx, readRequest, offset, int64(len(dest))); errno != 0 {
		return nil, errno
	}
	count, err := n.disk.file.ReadAt(dest, offset)
	if err != nil && err != io.EOF {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:count]), 0
}

func (n *faultNode) Write(ctx context.Context, _ fs.FileHandle, data []byte, offset int64) (uint32, syscall.Errno) {
	n.disk.writes.Add(1)
	n.disk.bytesWritten.Add(int64(len(data)))
	if errno := n.disk.admit(ctx, writeRequest, offset, int64(len(data))); errno != 0 {
		return 0, errno
	}
	count, err := n.disk.file.WriteAt(data, offset)
	return uint32(count), fs.ToErrno(err)
}

// Fsync has nothing to do: what was written is in the image already, and no
// test survives a crash of the machine. It fails and hangs as other I/O does.
func (n *faultNode) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	return n.disk.admit(ctx, flushRequest, 0, 0)
}

// Allocate serves the loop device's discards and its writes of zeroes.
func (n *faultNode) Allocate(ctx context.Context, _ fs.FileHandle, offset, size uint64, mode uint32) syscall.Errno {
	if errno := n.disk.admit(ctx, writeRequest, int64(offset), int64(size)); errno != 0 {
		return errno
	}
	return fs.ToErrno(unix.Fallocate(int(n.disk.file.Fd()), mode, int64(offset), int64(size)))
}
