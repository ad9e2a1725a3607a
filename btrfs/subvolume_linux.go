package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	itemOrphan   = 48
	itemRoot     = 132
	itemRootRef  = 156
	objectOrphan = math.MaxUint64 - 4   // -5
	objectLast   = math.MaxUint64 - 255 // -256, the last one of a subvolume

	// maxSubvolumeName is BTRFS_VOL_NAME_MAX: the longest name, in bytes.
	maxSubvolumeName = 255

	volumeFlagReadOnly = 1 << 1
	volumeFlagByID     = 1 << 4
)

// volumeArgsV2 is struct btrfs_ioctl_vol_args_v2. A name, or the id of a
// subvolume, stands in its last member.
type volumeArgsV2 struct {
	fd      int64
	transID uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte
}

const sizeVolumeArgsV2 = 4096

var (
	ioctlSnapCreateV2  = ioc(iocWrite, 23, sizeVolumeArgsV2)
	ioctlSnapDestroyV2 = ioc(iocWrite, 63, sizeVolumeArgsV2)
	ioctlStartSync     = ioc(iocRead, 24, 8)
	ioctlWaitSync      = ioc(iocWrite, 22, 8)
)

// WalkSubvolumes calls fn for each subvolume of the filesystem, the top and
// those that are being deleted too, in order of id. It is the same one each
// time. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WalkSubvolumes(fn func(*Subvolume) error) error {
	err := f.walkSubvolumes(objectFSTree, objectLast, itemRootRef, fn)
	if err != nil {
		return fmt.Errorf("%s: walk the subvolumes: %w", f.path, err)
	}
	return nil
}

// Subvolume returns one subvolume. unix.ENOENT says that there is none of this
// id. Needs CAP_SYS_ADMIN.
func (f *Filesystem) Subvolume(id uint64) (Subvolume, error) {
	found := Subvolume{}
	err := f.walkSubvolumes(id, id, itemRootBackref, func(s *Subvolume) error {
		found = *s
		return nil
	})
	if err == nil && found.ID == 0 {
		err = unix.ENOENT
	}
	if err != nil {
		return Subvolume{}, fmt.Errorf("%s: subvolume %d: %w", f.path, id, err)
	}
	return found, nil
}

// walkSubvolumes puts together what stands in two items: ROOT_ITEM says what a
// subvolume is, and ROOT_BACKREF behind it where it lies.
func (f *Filesystem) walkSubvolumes(first, last uint64, lastType uint32, fn func(*Subvolume) error) error {
	var s Subvolume
	flush := func() error {
		if s.ID == 0 {
			return nil
		}
		done := s
		s = Subvolume{}
		// The reference goes at once, the count in the item with the next commit.
		done.Deleted = done.Parent == 0 && done.ID != objectFSTree
		return fn(&done)
	}
	err := f.walkTree(treeRange{tree: treeRoot, minObject: first, maxObject: last, minType: itemRoot, maxType: lastType}, func(it *treeItem) error {
		if it.objectID != objectFSTree && it.objectID < objectFirstFree {
			return nil
		}
		switch it.itemType {
		case itemRoot:
			if err := flush(); err != nil {
				return err
			}
			return parseRootItem(it.objectID, it.data, &s)
		case itemRootBackref:
			if it.objectID != s.ID {
				return nil // its subvolume is gone
			}
			ref, err := parseRootRef(it.data)
			if err != nil {
				return fmt.Errorf("subvolume %d: %w", s.ID, err)
			}
			s.Parent, s.Directory, s.Name = it.offset, ref.directory, ref.name
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// Layout of struct btrfs_inode_item in include/uapi/linux/btrfs_tree.h.
const (
	itemInode           = 1
	inodeItemCTime      = 124
	inodeItemSize       = 160
	inodeItemGeneration = 0
)

// WrittenSince reports whether a file or directory of a subvolume was changed
// after a time: was made in transaction since or later, or has a later change
// time. It looks only at the parts of the tree that were written in that
// transaction or later. What moves extents and leaves the files as they are, a
// balance or a deduplication, does not count. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WrittenSince(subvolume, since uint64, after time.Time) (bool, error) {
	written := false
	err := f.walkTree(treeRange{
		tree: subvolume, minObject: objectFirstFree, maxObject: objectLast, maxType: math.MaxUint8, minTransID: since,
	}, func(it *treeItem) error {
		if it.itemType != itemInode || len(it.data) < inodeItemSize {
			return nil
		}
		le := binary.LittleEndian
		changed := time.Unix(int64(le.Uint64(it.data[inodeItemCTime:])), int64(le.Uint32(it.data[inodeItemCTime+8:])))
		if changed.After(after) || le.Uint64(it.data[inodeItemGeneration:]) >= since {
			written = true
			return errStopWalk
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStopWalk) {
		return false, fmt.Errorf("%s: changes of subvolume %d: %w", f.path, subvolume, err)
	}
	return written, nil
}

// Nested returns the paths of the subvolumes that lie in a subvolume, from its
// top, also of those deeper down, but not of those in the directory except. A
// snapshot has empty directories in their places. Needs CAP_SYS_ADMIN.
func (f *Filesystem) Nested(id uint64, except Place) ([]string, error) {
	type child struct {
		id  uint64
		ref rootRef
	}
	var paths []string
	var add func(id uint64, prefix string, depth int) error
	add = func(id uint64, prefix string, depth int) error {
		if depth > maxDepth {
			return unix.ELOOP // a damaged tree
		}
		var children []child
		err := f.walkTree(treeRange{
			tree: treeRoot, minObject: id, maxObject: id, minType: itemRootRef, maxType: itemRootRef,
		}, func(it *treeItem) error {
			if it.itemType != itemRootRef || it.objectID != id {
				return nil
			}
			ref, err := parseRootRef(it.data)
			if err != nil {
				return err
			}
			if except != (Place{id, ref.directory}) {
				children = append(children, child{it.offset, ref})
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, c := range children {
			dir, err := f.directoryPath(id, c.ref.directory)
			if err != nil {
				return err
			}
			path := prefix + dir + c.ref.name
			paths = append(paths, path)
			if err := add(c.id, path+"/", depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := add(id, "", 0); err != nil {
		return nil, fmt.Errorf("%s: subvolumes in subvolume %d: %w", f.path, id, err)
	}
	return paths, nil
}

// DirectoryPath returns the path of a directory from the top of the filesystem,
// "" for the top itself. Needs CAP_SYS_ADMIN.
func (f *Filesystem) DirectoryPath(subvolume, directory uint64) (string, error) {
	top, err := f.SubvolumePath(subvolume)
	if err != nil {
		return "", err
	}
	dir, err := f.directoryPath(subvolume, directory)
	if err != nil {
		return "", err
	}
	return strings.Trim(top+"/"+dir, "/"), nil
}

// CleaningSubvolumes returns the ids of the deleted subvolumes whose space the
// kernel is still giving back. Its cost grows with their number only. Needs
// CAP_SYS_ADMIN.
func (f *Filesystem) CleaningSubvolumes() ([]uint64, error) {
	var ids []uint64
	// One orphan item each, until the last block is free
	// (btrfs_drop_snapshot in fs/btrfs/extent-tree.c).
	err := f.walkTree(treeRange{
		tree: treeRoot, minObject: objectOrphan, maxObject: objectOrphan, minType: itemOrphan, maxType: itemOrphan,
	}, func(it *treeItem) error {
		if it.objectID == objectOrphan && it.itemType == itemOrphan && it.offset >= objectFirstFree && it.offset <= objectLast {
			ids = append(ids, it.offset)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: deleted subvolumes: %w", f.path, err)
	}
	return ids, nil
}

// Generation returns the transaction that ran, or the last one that did, when the
// filesystem was opened: what is made later has this number or a higher one.
func (f *Filesystem) Generation() uint64 { return f.info.generation }

// OpenTop opens the top of a mounted filesystem (subvolume 5) for changes, by a
// mount that nobody else sees: most have only subvolumes mounted, and in the
// sandbox of the daemon every mount is read-only. The filesystem is held open
// meanwhile, so that this never mounts one that was not, and asked for read-only,
// which leaves one that is mounted as it is (btrfs_reconfigure_for_mount in
// fs/btrfs/super.c makes it writable only if it is asked for that). unix.EROFS
// says that it is mounted read-only. Needs CAP_SYS_ADMIN.
func (c *Client) OpenTop(m *Mount) (*Filesystem, error) {
	held, _, err := c.Open(m)
	if err != nil {
		return nil, err
	}
	defer held.Close() //nolint:errcheck // it was only held
	f, err := c.mountTop(m)
	if err != nil {
		return nil, fmt.Errorf("mount the top of the filesystem for a moment: %w", err)
	}
	if f.UUID() != held.UUID() {
		return nil, errors.Join(fmt.Errorf("%s holds filesystem %s now: %w", m.source, f.UUID(), ErrUnmounted), f.Close())
	}
	if err := f.checkWritableTop(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkWritableTop makes sure that the open directory is the top of its
// filesystem, and may be written to.
func (f *Filesystem) checkWritableTop() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.fd, &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("the filesystem is mounted read-only: %w", unix.EROFS)
	}
	var inode unix.Stat_t
	if err := unix.Fstat(f.fd, &inode); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	id, err := f.subvolumeOf(f.fd)
	if err == nil && (id != objectFSTree || inode.Ino != objectFirstFree) {
		err = fmt.Errorf("subvolume %d was mounted for the top", id)
	}
	return err
}

// mountTop mounts the top without putting it anywhere. The mount goes when the
// returned Filesystem is closed.
func (c *Client) mountTop(m *Mount) (*Filesystem, error) {
	if m.source == "" {
		return nil, fmt.Errorf("it is not in the mount table: %w", ErrUnmounted)
	}
	context, err := unix.Fsopen("btrfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(context)
	for _, option := range [][2]string{{"source", c.hostPath(m.source)}, {"subvolid", "5"}} {
		if err := unix.FsconfigSetString(context, option[0], option[1]); err != nil {
			return nil, fmt.Errorf("fsconfig %s=%s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigSetFlag(context, "ro"); err != nil {
		return nil, fmt.Errorf("fsconfig ro: %w", err)
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.source, err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", m.source, err)
	}
	defer unix.Close(mount) // what is open on it stays good, as after a lazy unmount
	return OpenFilesystem(fmt.Sprintf("/proc/self/fd/%d", mount))
}

// subvolumeOf returns the id of the subvolume that an open file is in.
func (f *Filesystem) subvolumeOf(fd int) (uint64, error) {
	args := inoLookupArgs{objectID: objectFirstFree}
	if err := ioctlOn(fd, ioctlInoLookup, unsafe.Pointer(&args)); err != nil {
		return 0, fmt.Errorf("BTRFS_IOC_INO_LOOKUP: %w", err)
	}
	return args.treeID, nil
}

// Directory is an open directory of a filesystem.
type Directory struct {
	f    *Filesystem
	fd   int
	path string // from where f was opened
}

// OpenDirectory opens a directory beneath the one that f was opened at: "" is
// that one. No symbolic link and no mount on the way is followed (unix.ELOOP,
// unix.EXDEV).
func (f *Filesystem) OpenDirectory(path string) (*Directory, error) {
	return f.openBeneath(f.fd, path, path)
}

// Open opens a directory in the directory.
func (d *Directory) Open(name string) (*Directory, error) {
	return d.f.openBeneath(d.fd, name, strings.TrimPrefix(d.path+"/"+name, "/"))
}

// openBeneath opens a path from an open directory; shown is the one from the top.
func (f *Filesystem) openBeneath(dir int, path, shown string) (*Directory, error) {
	if path == "" {
		path = "."
	}
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + shown, Err: err}
	}
	return &Directory{f, fd, shown}, nil
}

// MakeDirectory makes a directory of mode 0700 if it is missing, and opens it.
func (f *Filesystem) MakeDirectory(path string) (*Directory, error) {
	d, err := f.OpenDirectory(path)
	if !errors.Is(err, unix.ENOENT) {
		return d, err
	}
	parent := filepath.Dir(path)
	if parent == "." {
		parent = ""
	}
	above, err := f.OpenDirectory(parent)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if err := unix.Mkdirat(above.fd, filepath.Base(path), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdir", Path: "/" + path, Err: err}
	}
	return f.OpenDirectory(path)
}

// Close closes the directory.
func (d *Directory) Close() { _ = unix.Close(d.fd) }

// Has reports whether the directory has an entry of a name, of whatever kind.
func (d *Directory) Has(name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, &os.PathError{Op: "stat", Path: "/" + d.path + "/" + name, Err: err}
}

// Subvolume returns the subvolume whose top the directory is. unix.EINVAL says
// that it is the top of none.
func (d *Directory) Subvolume() (Subvolume, error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return Subvolume{}, &os.PathError{Op: "stat", Path: "/" + d.path, Err: err}
	}
	if st.Ino != objectFirstFree {
		return Subvolume{}, fmt.Errorf("/%s is a directory and no subvolume: %w", d.path, unix.EINVAL)
	}
	id, err := d.f.subvolumeOf(d.fd)
	if err != nil {
		return Subvolume{}, fmt.Errorf("/%s: %w", d.path, err)
	}
	return d.f.Subvolume(id)
}

// Place is a directory: the subvolume that it is in, and its inode number.
type Place struct{ Subvolume, Inode uint64 }

// Place returns which directory it is.
func (d *Directory) Place() (Place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return Place{}, &os.PathError{Op: "stat", Path: "/" + d.path, Err: err}
	}
	subvolume, err := d.f.subvolumeOf(d.fd)
	if err != nil {
		return Place{}, fmt.Errorf("/%s: %w", d.path, err)
	}
	return Place{subvolume, st.Ino}, nil
}

// CreateSnapshot makes a read-only snapshot of a subvolume in the directory. It
// is on the disk when the call returns: the kernel commits the transaction for
// it (create_snapshot in fs/btrfs/ioctl.c). source is the top of a subvolume
// of the same filesystem. unix.EEXIST says that there is something of this name.
// Needs that the caller owns the subvolume, or CAP_SYS_ADMIN.
func (d *Directory) CreateSnapshot(source *Directory, name string) error {
	if len(name) > maxSubvolumeName {
		return &os.PathError{Op: "create snapshot", Path: name, Err: unix.ENAMETOOLONG}
	}
	args := volumeArgsV2{fd: int64(source.fd), flags: volumeFlagReadOnly}
	copy(args.name[:], name)
	if err := ioctlOn(d.fd, ioctlSnapCreateV2, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("BTRFS_IOC_SNAP_CREATE_V2 of /%s as /%s/%s: %w", source.path, d.path, name, err)
	}
	return nil
}

// DestroySubvolume deletes a subvolume by its id: look at what it is before. Its
// space is given back later, see CleaningSubvolumes, and the deletion is on
// the disk after Commit. unix.EPERM says that it is being sent, or is what is
// mounted by default; unix.ENOTEMPTY that subvolumes lie in it. Needs
// CAP_SYS_ADMIN, and kernel 5.7.
func (f *Filesystem) DestroySubvolume(id uint64) error {
	args := volumeArgsV2{flags: volumeFlagByID}
	*(*uint64)(unsafe.Pointer(&args.name)) = id
	if err := f.ioctl(ioctlSnapDestroyV2, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("%s: BTRFS_IOC_SNAP_DESTROY_V2 of subvolume %d: %w", f.path, id, err)
	}
	return nil
}

// Commit waits until all changes so far are on the disk. Unlike sync(2) it
// writes no file data that is not there yet.
func (f *Filesystem) Commit() error {
	var transaction uint64
	if err := f.ioctl(ioctlStartSync, unsafe.Pointer(&transaction)); err != nil {
		return fmt.Errorf("%s: BTRFS_IOC_START_SYNC: %w", f.path, err)
	}
	if err := f.ioctl(ioctlWaitSync, unsafe.Pointer(&transaction)); err != nil {
		return fmt.Errorf("%s: BTRFS_IOC_WAIT_SYNC: %w", f.path, err)
	}
	return nil
}
