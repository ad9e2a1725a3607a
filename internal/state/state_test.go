package state

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

type content struct {
	Name   string
	Number int
}

func noCheck() error { return nil }

func TestWhatIsSavedIsLoaded(t *testing.T) {
	d := NewDir(t.TempDir())
	var got content
	if err := d.LoadJSON("a.json", &got, noCheck); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	want := content{"x", 7}
	for range 2 { // the second time over the first
		if err := d.SaveJSON("a.json", want); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.LoadJSON("a.json", &got, noCheck); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	info, err := os.Stat(d.Path("a.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
	if names, err := d.Names("*"); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v %v", names, err)
	}
}

func TestDamagedFilesAreSetAside(t *testing.T) {
	for name, tt := range map[string]struct {
		text  string
		check error
	}{
		"empty":     {"", nil},
		"cut off":   {`{"Name":"x","Num`, nil},
		"no object": {`[1]`, nil},
		"zeros":     {strings.Repeat("\x00", 4096), nil},
		"refused":   {`{"Name":"x"}`, errors.New("it has no number")},
		"too large": {strings.Repeat(" ", maxSize+1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := NewDir(t.TempDir())
			if err := d.WriteFile("a.json", []byte(tt.text)); err != nil {
				t.Fatal(err)
			}
			var got content
			err := d.LoadJSON("a.json", &got, func() error { return tt.check })
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("got %v, want ErrDamaged", err)
			}
			if kept, err := os.ReadFile(d.Path("a.json.damaged")); err != nil || string(kept) != tt.text {
				t.Errorf("it is not kept aside: %v", err)
			}
			if err := d.LoadJSON("a.json", &got, noCheck); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a second time: %v, want that it is not there", err)
			}
		})
	}
}

func TestAFailedWriteLeavesTheOldFile(t *testing.T) {
	d := NewDir(t.TempDir())
	if err := d.SaveJSON("a.json", content{"old", 1}); err != nil {
		t.Fatal(err)
	}
	if err := d.SaveJSON("a.json", func() {}); err == nil {
		t.Error("a function was saved as JSON")
	}
	var got content
	if err := d.LoadJSON("a.json", &got, noCheck); err != nil || got.Name != "old" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := NewDir(d.Path("none")).SaveJSON("a.json", got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func FuzzLoadJSON(f *testing.F) {
	f.Add([]byte(`{"Name":"x","Number":1}`))
	f.Add([]byte(`{"Name":`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		d := NewDir(dir)
		if err := d.WriteFile("a.json", data); err != nil {
			t.Fatal(err)
		}
		var got content
		err := d.LoadJSON("a.json", &got, noCheck)
		if (err == nil) != (json.Unmarshal(data, new(content)) == nil) {
			t.Errorf("%q: %v", data, err)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v, want ErrDamaged", data, err)
		}
	})
}
