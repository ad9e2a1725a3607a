// Package damage finds what the errors of a scrub hit: the bad places on a
// device, and the files that they belong to.
//
// The kernel counts the errors of a scrub and tells their places in its log
// only, and not all of them: its messages are limited to ten in five seconds
// of each kind. From 6.4 on to 6.18 at least it names the stripe of 64 KiB
// that has a bad sector, not the sector (scrub_stripe_report_errors in
// fs/btrfs/scrub.c). [Verify] finds the sectors by reading them.
package damage

// Damage is what the errors of a scrub hit.
type Damage struct {
	Errors []DamagedBlock `json:"errors"`
	// Truncated says that there are more than are listed.
	Truncated bool `json:"truncated,omitempty"`
	// Unlocated is how many errors were counted whose place is not known: the
	// kernel limits the rate of its messages.
	Unlocated uint64 `json:"unlocated,omitempty"`
}

// DamagedBlock is one place on a device.
type DamagedBlock struct {
	Device   string `json:"device"` // kernel name
	DevID    uint64 `json:"devid,omitempty"`
	Logical  uint64 `json:"logical"`
	Physical uint64 `json:"physical"`
	// Length is how many bytes from there on have the bad sector among them;
	// 0 where it is known: it is the one at Logical.
	Length    uint64        `json:"length,omitempty"`
	Corrected bool          `json:"corrected"`
	Metadata  bool          `json:"metadata,omitempty"`
	Files     []DamagedFile `json:"files,omitempty"`
}

// DamagedFile is a file that a damaged block belongs to. One that is deleted
// and still open has no path. Those of deleted subvolumes are left out.
type DamagedFile struct {
	Subvolume string `json:"subvolume"` // path from the top of the pool, "" for the top
	Path      string `json:"path"`      // from the top of the subvolume
	Offset    uint64 `json:"offset"`
	Inode     uint64 `json:"inode"`
}
