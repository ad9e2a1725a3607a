package dashboards

import (
	"flag"
	"os"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/alerts"
)

//go:generate go test -count=1 -run ^TestFilesAreUpToDate$ . -update

var update = flag.Bool("update", false, "write the generated files again")

func TestFilesAreUpToDate(t *testing.T) {
	files, err := Dashboards(alerts.Default)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(Names()) {
		t.Errorf("%d files are written, and %d have names", len(files), len(Names()))
	}
	for _, name := range Names() {
		if *update {
			if err := os.WriteFile(name, files[name], 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(files[name]) {
			t.Errorf("%s is out of date: run `make generate`", name)
		}
	}
}
