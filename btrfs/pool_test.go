package btrfs

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUUIDText(t *testing.T) {
	const text = "01234567-89ab-cdef-0123-456789abcdef"
	want := UUID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}
	for _, s := range []string{text, strings.ToUpper(text)} {
		if got, err := ParseUUID(s); err != nil || got != want {
			t.Errorf("ParseUUID(%q) = %v %v, want %v", s, got, err, want)
		}
	}
	if got := want.String(); got != text {
		t.Errorf("String() = %q, want %q", got, text)
	}
	if want.IsZero() || !(UUID{}).IsZero() {
		t.Error("IsZero is wrong")
	}
	for _, s := range []string{
		"", "features", text[:35], text + "0", strings.ReplaceAll(text, "-", ""),
		"0123456789ab-cdef-0123-456789abcdef-", "01234567-89ab-cdef-0123-456789abcdeg",
		"01234567-89ab-cdef-0123-4567-9abcdef", "01234567 89ab cdef 0123 456789abcdef",
	} {
		var u UUID
		if got, err := ParseUUID(s); err == nil || u.UnmarshalText([]byte(s)) == nil {
			t.Errorf("ParseUUID(%q) = %v, want an error", s, got)
		}
	}
}

func TestNamesReadBackAsWritten(t *testing.T) {
	for _, want := range Profiles() {
		var got Profile
		if err := got.UnmarshalText([]byte(want.String())); err != nil || got != want {
			t.Errorf("profile %s is read as %s, %v", want, got, err)
		}
	}
	for _, want := range BlockGroupTypes() {
		var got BlockGroupType
		if err := got.UnmarshalText([]byte(want.String())); err != nil || got != want {
			t.Errorf("block group type %s is read as %s, %v", want, got, err)
		}
	}
	var (
		p Profile
		b BlockGroupType
	)
	for _, name := range []string{"", "RAID1", "raid7", "Data"} {
		if p.UnmarshalText([]byte(name)) == nil || b.UnmarshalText([]byte(name)) == nil {
			t.Errorf("%q is read as %s and %s", name, p, b)
		}
	}
	if got := Profile(0).String() + " " + Profile(200).String() + " " + BlockGroupType(0).String() + " " + BlockGroupType(9).String(); got !=
		"Profile(0) Profile(200) BlockGroupType(0) BlockGroupType(9)" {
		t.Errorf("values that are none print as %s", got)
	}
}

// Each profile's constants are those of btrfs_raid_array.
func TestProfileAttributes(t *testing.T) {
	for _, tt := range []struct {
		profile                                                                              Profile
		subStripes, devStripes, devsMax, devsMin, devsIncrement, copies, parity, devFailures int
	}{
		{RAID10, 2, 1, AllDevices, 2, 2, 2, 0, 1},
		{RAID1, 1, 1, 2, 2, 2, 2, 0, 1},
		{RAID1C3, 1, 1, 3, 3, 3, 3, 0, 2},
		{RAID1C4, 1, 1, 4, 4, 4, 4, 0, 3},
		{DUP, 1, 2, 1, 1, 1, 2, 0, 0},
		{RAID0, 1, 1, AllDevices, 1, 1, 1, 0, 0},
		{Single, 1, 1, 1, 1, 1, 1, 0, 0},
		{RAID5, 1, 1, AllDevices, 2, 1, 1, 1, 1},
		{RAID6, 1, 1, AllDevices, 3, 1, 1, 2, 2},
	} {
		want := ProfileAttributes{
			Name: tt.profile.String(), SubStripes: tt.subStripes, DevStripes: tt.devStripes, DevsMax: tt.devsMax, DevsMin: tt.devsMin,
			DevsIncrement: tt.devsIncrement, Copies: tt.copies, Parity: tt.parity, ToleratedFailures: tt.devFailures,
		}
		if diff := cmp.Diff(want, tt.profile.Attributes()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.profile, diff)
		}
	}
}

func TestUnknownStaysUnknownInJSON(t *testing.T) {
	p := Pool{Devices: []Device{{ID: 1}}}
	text, err := json.Marshal(&p)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"size", "missing", "errors", "read_only", "commits", "chunks", "statfs_free", "metadata_uuid"} {
		if strings.Contains(string(text), `"`+name+`"`) {
			t.Errorf("unknown %s is in the JSON: %s", name, text)
		}
	}
	var got Pool
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	for text, want := range map[string]Opt[uint64]{`null`: {}, `0`: Some[uint64](0), `7`: Some[uint64](7)} {
		got := Some[uint64](3)
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s is read as %+v, %v", text, got, err)
		}
		if back, err := json.Marshal(want); err != nil || string(back) != text {
			t.Errorf("%+v is written as %s, %v", want, back, err)
		}
	}
	var bad Opt[uint64]
	if err := json.Unmarshal([]byte(`"many"`), &bad); err == nil {
		t.Errorf("a text is read as %+v", bad)
	}
}

func TestDeviceUsable(t *testing.T) {
	good := func() Device {
		return Device{ID: 1, Size: Some[uint64](1 << 30), Used: Some[uint64](0), Missing: Some(false), Writeable: Some(true)}
	}
	for name, tt := range map[string]struct {
		change func(*Device)
		want   bool
	}{
		"good":                  {func(*Device) {}, true},
		"missing":               {func(d *Device) { d.Missing = Some(true) }, false},
		"seed":                  {func(d *Device) { d.Writeable = Some(false) }, false},
		"replace target":        {func(d *Device) { d.ReplaceTarget = true }, false},
		"size unknown":          {func(d *Device) { d.Size = Opt[uint64]{} }, false},
		"use unknown":           {func(d *Device) { d.Used = Opt[uint64]{} }, false},
		"kernel without states": {func(d *Device) { d.Missing, d.Writeable = Opt[bool]{}, Opt[bool]{} }, true},
	} {
		d := good()
		tt.change(&d)
		if got := d.Usable(); got != tt.want {
			t.Errorf("%s: usable %t, want %t", name, got, tt.want)
		}
	}
}
