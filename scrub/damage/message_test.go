package damage

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseLine(t *testing.T) {
	for _, tt := range []struct {
		line string
		want Message
	}{
		// 6.18, as this kernel wrote them.
		{
			`[12974.602431] BTRFS error (device loop2): scrub: fixed up error at logical 137756672 on dev /dev/loop2 physical 137756672`,
			Message{Pool: "loop2", Kind: Corrected, Device: "/dev/loop2", Logical: 137756672, Physical: 137756672},
		},
		{
			`[12974.926908] BTRFS error (device loop4): scrub: unable to fixup (regular) error at logical 137953280 on dev /dev/loop5 physical 116981760`,
			Message{Pool: "loop4", Kind: Uncorrectable, Device: "/dev/loop5", Logical: 137953280, Physical: 116981760},
		},
		{
			`[12974.930548] BTRFS warning (device loop4): scrub: checksum error at logical 137953280 on dev /dev/loop5, physical 116981760 root 256 inode 259 offset 196608 length 4096 links 1 (path: dir/sub dir/file one)`,
			Message{Pool: "loop4", Kind: Hit, Cause: "checksum error", Device: "/dev/loop5", Logical: 137953280, Physical: 116981760, Root: 256, Inode: 259, Offset: 196608, Path: "dir/sub dir/file one"},
		},
		{
			`[12979.730885] BTRFS warning (device loop16): scrub: tree block 6356992 mirror 1 has bad csum, has 0x02925632 want 0x13a79247`,
			Message{Pool: "loop16", Kind: TreeBlock, Cause: "bad csum", Logical: 6356992, Mirror: 1, Metadata: true},
		},
		{
			`[12977.775389] BTRFS error (device loop8): scrub: super block at physical 67108864 devid 2 has bad csum`,
			Message{Pool: "loop8", Kind: SuperBlock, Cause: "bad csum", DevID: 2, Physical: 67108864},
		},
		// Other texts of fs/btrfs/scrub.c from 6.4 on.
		{
			`BTRFS error (device dm-2): unable to fixup (regular) error at logical 13631488 on dev /dev/mapper/test-scratch1 physical 13631488`,
			Message{Pool: "dm-2", Kind: Uncorrectable, Device: "/dev/mapper/test-scratch1", Logical: 13631488, Physical: 13631488},
		},
		{
			`BTRFS warning (device dm-2): checksum error at logical 13631488 on dev /dev/mapper/test-scratch1, physical 13631488, root 5, inode 257, offset 0, length 4096, links 1 (path: file1)`,
			Message{Pool: "dm-2", Kind: Hit, Cause: "checksum error", Device: "/dev/mapper/test-scratch1", Logical: 13631488, Physical: 13631488, Root: 5, Inode: 257, Path: "file1"},
		},
		{
			`BTRFS error (device sda1 state EA): fixed up error at logical 4096 on mirror 2`,
			Message{Pool: "sda1", Kind: Corrected, Logical: 4096, Mirror: 2},
		},
		{
			`BTRFS warning (device sda): tree block 30539776 mirror 2 has bad generation, has 7 want 9`,
			Message{Pool: "sda", Kind: TreeBlock, Cause: "bad generation", Logical: 30539776, Mirror: 2, Metadata: true},
		},
		{
			`BTRFS warning (device sda): scrub: tree block 30539776 mirror 2 has bad bytenr, has 0 want 30539776`,
			Message{Pool: "sda", Kind: TreeBlock, Cause: "bad bytenr", Logical: 30539776, Mirror: 2, Metadata: true},
		},
		{
			`BTRFS error (device sda): super block at physical 65536 devid 1 has bad generation 8 expect 9`,
			Message{Pool: "sda", Kind: SuperBlock, Cause: "bad generation", DevID: 1, Physical: 65536},
		},
		{
			`BTRFS warning (device sda): scrub: super block error on device /dev/sda, physical 65536`,
			Message{Pool: "sda", Kind: SuperBlock, Cause: "super block error", Device: "/dev/sda", Physical: 65536},
		},
		{
			`BTRFS error (device sda): scrub: unrepaired sectors detected, full stripe 298844160 data stripe 1 errors 3-4`,
			Message{Pool: "sda", Kind: FullStripe, Cause: "unrepaired sectors", Logical: 298844160 + 65536},
		},
		{
			`BTRFS warning (device sda): scrub: header error at logical 30539776 on dev /dev/sda, physical 38928384: metadata leaf (level 0) in tree 7`,
			Message{Pool: "sda", Kind: Hit, Cause: "header error", Device: "/dev/sda", Logical: 30539776, Physical: 38928384, Metadata: true},
		},
		// 5.15 to 6.3.
		{
			`[64707.979036] BTRFS warning (device dm-3): checksum error at logical 36997591040 on dev /dev/mapper/nvme-home, physical 34850107392, root 1054, inode 2295743, offset 2718461952: path resolving failed with ret=-2`,
			Message{Pool: "dm-3", Kind: Hit, Cause: "checksum error", Device: "/dev/mapper/nvme-home", Logical: 36997591040, Physical: 34850107392, Root: 1054, Inode: 2295743, Offset: 2718461952},
		},
		{
			`[64709.979036] [T1234] BTRFS error (device dm-3): unable to fixup (regular) error at logical 36997591040 on dev /dev/mapper/nvme-home`,
			Message{Pool: "dm-3", Kind: Uncorrectable, Device: "/dev/mapper/nvme-home", Logical: 36997591040},
		},
		{
			`BTRFS error (device dm-3): unable to fixup (nodatasum) error at logical 36997591040 on dev /dev/mapper/nvme home`,
			Message{Pool: "dm-3", Kind: Uncorrectable, Device: "/dev/mapper/nvme home", Logical: 36997591040},
		},
		{
			`BTRFS error (device sdb): fixed up error at logical 36997591040 on dev /dev/sdb`,
			Message{Pool: "sdb", Kind: Corrected, Device: "/dev/sdb", Logical: 36997591040},
		},
		{
			`BTRFS warning (device sdb): checksum/header error at logical 30490624 on dev /dev/sdb, physical 38879232: metadata node (level 1) in tree 5`,
			Message{Pool: "sdb", Kind: Hit, Cause: "checksum/header error", Device: "/dev/sdb", Logical: 30490624, Physical: 38879232, Metadata: true},
		},
		{
			`BTRFS warning (device sdb): i/o error at logical 30490624 on dev /dev/sdb, physical 38879232, root 257, inode 258, offset 8192, length 4096, links 2 (path: a (path: b)/c, root 3): d)`,
			Message{Pool: "sdb", Kind: Hit, Cause: "i/o error", Device: "/dev/sdb", Logical: 30490624, Physical: 38879232, Root: 257, Inode: 258, Offset: 8192, Path: "a (path: b)/c, root 3): d"},
		},
	} {
		got, ok := ParseLine(tt.line)
		if !ok {
			t.Errorf("not understood: %s", tt.line)
		} else if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s\n-want +got:\n%s", tt.line, diff)
		}
	}
}

func TestOtherLinesArePassedOver(t *testing.T) {
	for _, line := range []string{
		"", "BTRFS", "[", "[1] ", "BTRFS error (device", "BTRFS error (device sda): ",
		"BTRFS info (device loop2): scrub: started on devid 1",
		"BTRFS info (device loop2): scrub: finished on devid 1 with status: 0",
		"BTRFS error (device loop2): bdev /dev/loop2 errs: wr 0, rd 0, flush 0, corrupt 1, gen 0",
		"BTRFS warning (device loop2): csum failed root 5 ino 257 off 0 csum 0x1 expected csum 0x2 mirror 1",
		"BTRFS error (device loop2): scrub: fixed up error at logical 99999999999999999999 on dev /dev/loop2 physical 1",
		"EXT4-fs error (device sda): fixed up error at logical 1 on dev /dev/sda",
		"I/O error, dev loop10, sector 270080 op 0x0:(READ) flags 0x0 phys_seg 127 prio class 3",
		"a program: BTRFS error (device sda): fixed up error at logical 1 on dev /dev/sda",
	} {
		if m, ok := ParseLine(line); ok {
			t.Errorf("%q is understood as %+v", line, m)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add("BTRFS error (device loop2): scrub: fixed up error at logical 137756672 on dev /dev/loop2 physical 137756672")
	f.Add("BTRFS warning (device sdb): i/o error at logical 1 on dev /dev/sdb, physical 2, root 5, inode 258, offset 3, length 4096, links 2 (path: a)")
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := ParseLine(line); ok && (m.Kind == 0 || !strings.Contains(line, m.Path) || !strings.Contains(line, m.Device)) {
			t.Errorf("%q is understood as %+v", line, m)
		}
	})
}
