package damage

import "testing"

func TestRecordsOfTheKernelAlone(t *testing.T) {
	for _, tt := range []struct {
		record, want string
		ok           bool
	}{
		{"3,1234,12974602431,-;BTRFS error (device loop2): x\n SUBSYSTEM=block\n DEVICE=b7:2\n", "BTRFS error (device loop2): x", true},
		{"4,7,1,-,caller=T123;a\\x5cb\\xc3\\xa4\\x0a\n", "a\\bä\n", true},
		{"6,7,1,-;\\x5\\xzz\\x", "\\x5\\xzz\\x", true},
		{"11,7,1,-;BTRFS error (device loop2): written by a program\n", "", false},
		{"12345", "", false},
		{"x,1,1,-;y", "", false},
	} {
		got, ok := kernelText(tt.record)
		if got != tt.want || ok != tt.ok {
			t.Errorf("%q is %q, %v", tt.record, got, ok)
		}
	}
}

func TestSuppressedMessagesAreNoticed(t *testing.T) {
	for line, want := range map[string]bool{
		"scrub_stripe_report_errors: 5 callbacks suppressed": true,
		"btrfs_printk: 12 callbacks suppressed":              true,
		"_btrfs_printk: 12 callbacks suppressed":             true,
		"net_ratelimit: 12 callbacks suppressed":             false,
		"scrub_ of somebody else: 1 callbacks suppressed x":  false,
	} {
		if suppressed.MatchString(line) != want {
			t.Errorf("%q: %v", line, !want)
		}
	}
}
