package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/dashboards"
)

// filesIn are the files of a directory with their content.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	files := make(map[string]string)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		files[e.Name()] = string(data)
	}
	return files
}

func TestExportWritesWhatTheProgramHas(t *testing.T) {
	dir := t.TempDir()
	for _, what := range []string{"dashboards", "alerts"} {
		if status, _, stderr := runCommandLine("export", what, dir); status != 0 {
			t.Fatalf("export %s: exit status %d: %s", what, status, stderr)
		}
	}
	want := make(map[string]string)
	for _, name := range dashboards.Names() {
		data, err := dashboards.Files.ReadFile(name)
		must(t, err)
		want[name] = string(data)
	}
	rules, err := alerts.Files.ReadFile(alerts.FileName)
	must(t, err)
	want[alerts.FileName] = string(rules)
	got := filesIn(t, dir)
	if len(got) != len(want) {
		t.Errorf("there are %d files, want %d", len(got), len(want))
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s is not what the program has", name)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode().Perm() != 0o644 {
			t.Errorf("%s has mode %v: Grafana and Prometheus cannot read it", name, info.Mode())
		}
	}

	status, stdout, stderr := runCommandLine("export", "dashboards", dir)
	if status != 0 || strings.Count(stdout, "is up to date") != 2 || strings.Contains(stdout, "wrote") {
		t.Errorf("once more: exit status %d\n%s%s", status, stdout, stderr)
	}
}

func TestExportReplacesNothingUnasked(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "pool.json")
	must(t, os.WriteFile(mine, []byte("mine"), 0o600))
	status, stdout, stderr := runCommandLine("export", "dashboards", dir)
	if status != 1 || stdout != "" || !strings.Contains(stderr, mine) || !strings.Contains(stderr, "--overwrite") || strings.Contains(stderr, "fleet") {
		t.Errorf("exit status %d\n%s%s", status, stdout, stderr)
	}
	if files := filesIn(t, dir); len(files) != 1 || files["pool.json"] != "mine" {
		t.Errorf("the files are now %v", files)
	}

	status, stdout, _ = runCommandLine("export", "dashboards", dir, "--overwrite", "--dry-run")
	if status != 0 || !strings.Contains(stdout, "would replace "+mine) || !strings.Contains(stdout, "would write "+filepath.Join(dir, "fleet.json")) {
		t.Errorf("--dry-run: exit status %d\n%s", status, stdout)
	}
	if files := filesIn(t, dir); len(files) != 1 || files["pool.json"] != "mine" {
		t.Errorf("after --dry-run the files are %v", files)
	}

	status, stdout, stderr = runCommandLine("export", "dashboards", dir, "--overwrite")
	if status != 0 || strings.Count(stdout, "wrote ") != 2 {
		t.Errorf("--overwrite: exit status %d\n%s%s", status, stdout, stderr)
	}
	if files := filesIn(t, dir); len(files) != 2 || files["pool.json"] == "mine" {
		t.Errorf("after --overwrite there are %d files", len(files))
	}
}

// A file that appears after it was looked for is somebody else's.
func TestExportDoesNotReplaceWhatAppears(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool.json")
	must(t, os.WriteFile(path, []byte("mine"), 0o600))
	e := export{path: path, data: []byte("ours")}
	if err := e.write(); err == nil {
		t.Error("it was written")
	}
	if files := filesIn(t, filepath.Dir(path)); len(files) != 1 || files["pool.json"] != "mine" {
		t.Errorf("the files are now %v", files)
	}
}

func TestExportSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	pipes := filepath.Join(dir, "pipes")
	must(t, os.Mkdir(pipes, 0o700))
	must(t, unix.Mkfifo(filepath.Join(pipes, "fleet.json"), 0o600))
	for _, tt := range []struct{ args, want string }{
		{"export dashboards", "required argument 'dir' not provided"},
		{"export pictures " + dir, "expected command but got \"pictures\""},
		{"export alerts " + filepath.Join(dir, "none"), "there is no directory " + filepath.Join(dir, "none") + ": make it first"},
		{"export alerts " + file, "is no directory"},
		{"export dashboards --overwrite " + pipes, "fleet.json is no file"},
	} {
		status, stdout, stderr := runCommandLine(strings.Fields(tt.args)...)
		if status != 1 || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit status %d, want %q\n%s%s", tt.args, status, tt.want, stdout, stderr)
		}
	}
}
