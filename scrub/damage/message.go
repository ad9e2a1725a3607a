package damage

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Kind is what a message of the kernel says.
type Kind uint8

// The kinds.
const (
	// Corrected: another copy is good. It has been written over the bad one,
	// except in a read-only scrub, for which the kernel says the same.
	Corrected Kind = iota + 1
	// Uncorrectable: no copy is good.
	Uncorrectable
	// Hit tells what a bad block belongs to, a file or a tree. The kernel says
	// it of uncorrectable blocks only since 6.4, of all before.
	Hit
	// TreeBlock: a copy of a tree block is wrong. Since 6.4; it may yet be
	// corrected.
	TreeBlock
	// SuperBlock: a superblock is wrong. The next commit writes it anew.
	SuperBlock
	// FullStripe: raid5 or raid6 data that parity could not restore.
	FullStripe
)

var kindNames = [...]string{Corrected: "corrected", Uncorrectable: "uncorrectable", Hit: "hit", TreeBlock: "tree block", SuperBlock: "superblock", FullStripe: "full stripe"}

// String returns the kind in words.
func (k Kind) String() string {
	if int(k) < len(kindNames) && k != 0 {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Message is one message of a scrub. What a message does not tell is zero.
type Message struct {
	// Pool is the kernel name of one of the pool's devices.
	Pool string
	Kind Kind
	// Cause is what is wrong, in the kernel's words: "checksum error", "bad
	// csum".
	Cause string

	// Device is the path of the device, as the kernel knows it.
	Device   string
	DevID    uint64 // of a superblock, whose message has no Device
	Mirror   uint64 // from 1 on, where the message has no Device
	Logical  uint64
	Physical uint64
	Metadata bool // the message says so

	// What was hit, with the kind Hit. Path is empty where the kernel could
	// not find it.
	Root, Inode, Offset uint64
	Path                string
}

type pattern struct {
	kind Kind
	re   *regexp.Regexp
}

// patterns are the messages of fs/btrfs/scrub.c from 5.15 to 6.18, without
// the "scrub: " that 6.16 and later begin them with. The names of the groups
// say what they are.
var patterns = []pattern{
	{Corrected, regexp.MustCompile(`^fixed up error at logical (?P<logical>\d+) on (?:dev (?P<device>.+?)|mirror (?P<mirror>\d+))(?: physical (?P<physical>\d+))?$`)},
	{Uncorrectable, regexp.MustCompile(`^unable to fixup \(\w+\) error at logical (?P<logical>\d+) on (?:dev (?P<device>.+?)|mirror (?P<mirror>\d+))(?: physical (?P<physical>\d+))?$`)},
	// (?s): a path may have any byte in it.
	{Hit, regexp.MustCompile(`(?s)^(?P<cause>[^:]+) at logical (?P<logical>\d+) on dev (?P<device>.+?), physical (?P<physical>\d+),? root (?P<root>\d+),? inode (?P<inode>\d+),? offset (?P<offset>\d+)(?:,? length \d+,? links \d+ \(path: (?P<path>.*)\)|: path resolving failed with ret=-?\d+)$`)},
	{Hit, regexp.MustCompile(`^(?P<cause>[^:]+) at logical (?P<logical>\d+) on dev (?P<device>.+?), physical (?P<physical>\d+): (?P<metadata>metadata) (?:leaf|node) \(level -?\d+\) in tree -?\d+$`)},
	{TreeBlock, regexp.MustCompile(`^(?P<metadata>tree block) (?P<logical>\d+) mirror (?P<mirror>\d+) has (?P<cause>bad [^,]+)(?:,.*)?$`)},
	{SuperBlock, regexp.MustCompile(`^super block at physical (?P<physical>\d+) devid (?P<devid>\d+) has (?P<cause>bad \w+).*$`)},
	{SuperBlock, regexp.MustCompile(`^(?P<cause>super block error) on dev(?:ice)? (?P<device>.+?), physical (?P<physical>\d+)$`)},
	{FullStripe, regexp.MustCompile(`^(?P<cause>unrepaired sectors) detected, full stripe (?P<logical>\d+) data stripe (?P<stripe>\d+) errors .*$`)},
}

// stripeLength is the unit in which the kernel scrubs and stripes
// (BTRFS_STRIPE_LEN in fs/btrfs/volumes.h).
const stripeLength = 64 << 10

// ParseLine reads a line of the kernel's log, as dmesg(1) shows it or without
// the time. It is false for all but the scrub messages that tell of an error
// and its place.
func ParseLine(line string) (Message, bool) {
	text, ok := strings.CutPrefix(stripTime(strings.TrimSuffix(line, "\n")), "BTRFS ")
	if !ok {
		return Message{}, false
	}
	// "error (device sda1): ", and since 5.18 "error (device sda1 state EA): ".
	level, text, ok := strings.Cut(text, " (device ")
	if !ok || level != "error" && level != "warning" {
		return Message{}, false
	}
	pool, text, ok := strings.Cut(text, "): ")
	if !ok {
		return Message{}, false
	}
	pool, _, _ = strings.Cut(pool, " state ")
	text = strings.TrimPrefix(text, "scrub: ")
	for _, p := range patterns {
		if m := p.re.FindStringSubmatch(text); m != nil {
			return p.message(pool, m)
		}
	}
	return Message{}, false
}

// stripTime removes the time, and the caller's id, that dmesg puts before a
// message in brackets.
func stripTime(line string) string {
	for strings.HasPrefix(line, "[") {
		_, rest, found := strings.Cut(line, "]")
		if !found {
			break
		}
		line = strings.TrimLeft(rest, " ")
	}
	return line
}

func (p *pattern) message(pool string, groups []string) (Message, bool) {
	m := Message{Pool: pool, Kind: p.kind}
	var stripe uint64
	for i, name := range p.re.SubexpNames() {
		value := groups[i]
		if name == "" || value == "" {
			continue
		}
		var number *uint64
		switch name {
		case "cause":
			m.Cause = value
		case "device":
			m.Device = value
		case "path":
			m.Path = value
		case "metadata":
			m.Metadata = true
		case "logical":
			number = &m.Logical
		case "physical":
			number = &m.Physical
		case "mirror":
			number = &m.Mirror
		case "devid":
			number = &m.DevID
		case "root":
			number = &m.Root
		case "inode":
			number = &m.Inode
		case "offset":
			number = &m.Offset
		case "stripe":
			number = &stripe
		}
		if number == nil {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return Message{}, false
		}
		*number = n
	}
	m.Logical += stripe * stripeLength
	return m, true
}
