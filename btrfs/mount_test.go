package btrfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseMountinfo(t *testing.T) {
	for _, tt := range []struct {
		name  string
		table string
		want  []Mount
		err   string
	}{
		{name: "nothing"},
		{
			name: "no btrfs",
			table: "21 28 0:20 / /proc rw,nosuid - proc proc rw\n" +
				"28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
		},
		{
			name:  "one mount",
			table: "36 28 0:31 / /mnt/pool rw,relatime shared:7 - btrfs /dev/sdb rw,space_cache=v2,subvolid=5,subvol=/\n",
			want:  []Mount{{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{{36, "/", "/mnt/pool"}}}},
		},
		{
			name: "subvolumes and bind mounts of one filesystem, best first",
			table: "41 28 0:31 /@home /home rw - btrfs /dev/sdb rw,subvol=/@home\n" +
				"42 28 0:31 /@home/me/src /srv/src rw - btrfs /dev/sdb rw,subvol=/@home\n" +
				"43 28 0:31 / /mnt/pool rw - btrfs /dev/sdb rw,subvol=/\n" +
				"44 28 0:31 / /mnt/a rw - btrfs /dev/sdb rw,subvol=/\n" +
				"45 28 0:31 /@ / rw - btrfs /dev/sdb rw,subvol=/@\n",
			want: []Mount{{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{
				{44, "/", "/mnt/a"}, {43, "/", "/mnt/pool"}, {45, "/@", "/"}, {41, "/@home", "/home"}, {42, "/@home/me/src", "/srv/src"},
			}}},
		},
		{
			name: "a deleted bind mount comes last",
			table: "50 28 0:31 /gone//deleted /a rw - btrfs /dev/sdb rw\n" +
				"51 28 0:31 /a/rather/long/directory /mnt/elsewhere rw - btrfs /dev/sdb rw\n",
			want: []Mount{{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{
				{51, "/a/rather/long/directory", "/mnt/elsewhere"}, {50, "/gone//deleted", "/a"},
			}}},
		},
		{
			name:  "a bind mount of a file",
			table: "60 28 0:31 /@/etc/hostname /run/container/hostname ro - btrfs /dev/sdb rw,subvol=/@\n",
			want: []Mount{{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{
				{60, "/@/etc/hostname", "/run/container/hostname"},
			}}},
		},
		{
			name: "read-only is what the superblock is, not a mount",
			table: "61 28 0:31 / /a ro,relatime - btrfs /dev/sdb rw\n" +
				"62 28 0:32 / /b rw,relatime - btrfs /dev/sdc ro,degraded\n" +
				"63 28 0:33 / /c rw,relatime - btrfs /dev/sdd rw,rescue=all,rorschach\n",
			want: []Mount{
				{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{{61, "/", "/a"}}},
				{Device: "0:32", ReadOnly: Some(true), source: "/dev/sdc", Points: []MountPoint{{62, "/", "/b"}}},
				{Device: "0:33", ReadOnly: Some(false), source: "/dev/sdd", Points: []MountPoint{{63, "/", "/c"}}},
			},
		},
		{
			name:  "escaped space, tab, newline, backslash and number sign",
			table: `70 28 0:31 /with\040space /mnt/a\011b\012c\134d\043 rw - btrfs /dev/mapper/my\040disk rw` + "\n",
			want: []Mount{{Device: "0:31", ReadOnly: Some(false), source: "/dev/mapper/my disk", Points: []MountPoint{
				{70, "/with space", "/mnt/a\tb\nc\\d#"},
			}}},
		},
		{
			name:  "what only looks like an escape or white space",
			table: "71 28 0:31 / /mnt/\\9\\04\\400\u00a0\u2003\r\v\f\u0085ü\xff\\ rw - btrfs /dev/sdb rw\n",
			want: []Mount{{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{
				{71, "/", "/mnt/\\9\\04\\400\u00a0\u2003\r\v\f\u0085ü\xff\\"},
			}}},
		},
		{
			name: "any number of optional fields",
			table: "72 28 0:31 / /a rw - btrfs /dev/sdb rw\n" +
				"73 28 0:32 / /b rw shared:1 master:2 propagate_from:3 unbindable - btrfs /dev/sdc rw\n",
			want: []Mount{
				{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{{72, "/", "/a"}}},
				{Device: "0:32", ReadOnly: Some(false), source: "/dev/sdc", Points: []MountPoint{{73, "/", "/b"}}},
			},
		},
		{
			name: "a malformed line costs no other pool",
			table: "80 28 0:31 / /a rw - btrfs /dev/sdb rw\n" +
				"81 28 - btrfs /dev/sdc rw\n" +
				"82 28 0:33 / /c rw - btrfs /dev/sdd rw\n",
			want: []Mount{
				{Device: "0:31", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{{80, "/", "/a"}}},
				{Device: "0:33", ReadOnly: Some(false), source: "/dev/sdd", Points: []MountPoint{{82, "/", "/c"}}},
			},
			err: `mountinfo line "81 28 - btrfs /dev/sdc rw" is malformed`,
		},
		{
			name: "a mount id that is none",
			table: "many 28 0:31 / /a rw - btrfs /dev/sdb rw\n" +
				"82 28 0:33 / /c rw - btrfs /dev/sdd rw\n",
			want: []Mount{{Device: "0:33", ReadOnly: Some(false), source: "/dev/sdd", Points: []MountPoint{{82, "/", "/c"}}}},
			err:  "mount id",
		},
		{
			name: "a truncated last line",
			table: "82 28 0:33 / /c rw - btrfs /dev/sdd rw\n" +
				"83 28 0:34 / /d rw - btrfs /dev/sde",
			want: []Mount{{Device: "0:33", ReadOnly: Some(false), source: "/dev/sdd", Points: []MountPoint{{82, "/", "/c"}}}},
			err:  "malformed",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMountinfo([]byte(tt.table))
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(Mount{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			checkError(t, err, tt.err)
		})
	}
}

// checkError wants an error that contains a text; empty: no error.
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("error %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want one with %q", err, want)
	}
}

// The mount table of a container host: overlays, namespaces and tmpfs by the
// dozen around one pool that carries the images.
func TestParseMountinfoOfContainerHost(t *testing.T) {
	table, err := os.ReadFile("testdata/mountinfo-containers")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseMountinfo(table)
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{Device: "0:27", ReadOnly: Some(false), source: "/dev/nvme0n1p2", Points: []MountPoint{
			{29, "/@", "/"},
			{64, "/@docker", "/var/lib/docker"},
			{811, "/@docker/btrfs", "/var/lib/docker/btrfs"},
			{902, "/@docker/volumes/db/_data", "/var/lib/containers/db"},
		}},
		{Device: "0:52", ReadOnly: Some(false), source: "/dev/sdb", Points: []MountPoint{
			{97, "/", "/srv/My Media"},
		}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Mount{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// mountinfoEscape escapes a path as the kernel does (mangle in fs/seq_file.c).
var mountinfoEscape = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`)

func FuzzParseMountinfo(f *testing.F) {
	names, err := filepath.Glob("testdata/mountinfo-*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		table, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(table)
	}
	f.Add([]byte("36 28 0:31 / /mnt/\\040 rw - btrfs /dev/sdb rw\n36 - btrfs "))
	f.Fuzz(func(t *testing.T, table []byte) {
		mounts, _ := parseMountinfo(table)
		devices := map[string]bool{}
		points := 0
		for _, m := range mounts {
			if devices[m.Device] {
				t.Errorf("filesystem %s is there twice", m.Device)
			}
			devices[m.Device] = true
			points += len(m.Points)
			if len(m.Points) == 0 {
				t.Errorf("filesystem %s has no mount point", m.Device)
			}
		}
		if lines := strings.Count(string(table), "\n") + 1; points > lines {
			t.Errorf("%d mount points of %d lines", points, lines)
		}
	})
}

func FuzzParseMountinfoPaths(f *testing.F) {
	f.Add("/", "/mnt/pool", "/dev/sdb")
	f.Add("/@ home", "/mnt/\\040 - btrfs \n\t#", "/dev/mapper/a b")
	f.Fuzz(func(t *testing.T, root, path, source string) {
		if root == "" || path == "" || source == "" || slices.ContainsFunc([]string{root, path, source}, func(s string) bool { return strings.Contains(s, "\x00") }) {
			return // no such names
		}
		line := "36 28 0:31 " + mountinfoEscape.Replace(root) + " " + mountinfoEscape.Replace(path) +
			" rw shared:1 - btrfs " + mountinfoEscape.Replace(source) + " rw\n"
		got, err := parseMountinfo([]byte("1 1 8:1 / / rw - ext4 /dev/sda rw\n" + line + line))
		want := []Mount{{Device: "0:31", ReadOnly: Some(false), source: source, Points: []MountPoint{{36, root, path}, {36, root, path}}}}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Mount{})); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
