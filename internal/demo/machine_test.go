//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// withAptGet makes a machine whose only program is an apt-get that runs a script,
// in a directory where it may leave files. It returns that directory.
func withAptGet(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	text := "#!/bin/sh\nPATH=/usr/bin:/bin\ncd " + dir + "\necho \"$@\" >>asked\n" + script
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	return dir
}

// asked is what apt-get was asked to do, a line each time.
func asked(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// waitForFile waits until a program has made a file.
func waitForFile(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is no %s", path)
		}
	}
}

func TestProgramsAreDownloadedAndNotInstalled(t *testing.T) {
	packager := testprogram.Find(t, "dpkg-deb", "dpkg")
	asks := withAptGet(t, `
[ "$1" = download ] || exit 0
cd "$OLDPWD"
shift 2
for name; do
	mkdir -p tree/DEBIAN tree/usr/bin
	printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a test\n' $name >tree/DEBIAN/control
	printf '#!/bin/sh\n' >tree/usr/bin/$name
	chmod 755 tree/usr/bin/$name
	dpkg-deb --build tree $name.deb
	rm -r tree
done`)
	if err := os.Symlink(packager, filepath.Join(asks, "dpkg-deb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", asks+":/usr/bin:/bin") // dpkg-deb runs tar
	dir := t.TempDir()
	if err := downloadStack(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if text := asked(t, asks); text != "update -qq\ndownload -qq prometheus prometheus-alertmanager\n" {
		t.Errorf("apt-get was asked to %s", text)
	}
	s := new(stack)
	if err := s.find(filepath.Join(dir, "usr/bin")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{s.prometheusPath, s.alertmanagerPath} {
		if !strings.HasPrefix(path, dir) {
			t.Errorf("%s is not beneath %s", path, dir)
		}
	}
}

func TestCtrlCEndsADownload(t *testing.T) {
	dir := withAptGet(t, "sleep 1000 & echo $! >child; mv child waits; wait")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- downloadStack(ctx, t.TempDir()) }()
	waitForFile(t, filepath.Join(dir, "waits"))
	cancel()
	select {
	case err := <-ended: // the output ends with the last process that has it
		if err == nil {
			t.Error("it succeeded")
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if text := asked(t, dir); text != "update -qq\n" {
		t.Errorf("apt-get was asked to %s", text)
	}
}

func TestCtrlCDoesNotEndAnInstallation(t *testing.T) {
	dir := withAptGet(t, `
[ "$1" = install ] || exit 0
cut -d ' ' -f 6 /proc/$$/stat >session
touch begun
while [ ! -e proceed ]; do sleep 0.01; done
for p in mkfs.btrfs btrfs; do printf '#!/bin/sh\n' >$p; chmod 755 $p; done`)
	t.Setenv("PATH", dir+":/usr/local/sbin:/usr/sbin:/sbin")
	if _, err := exec.LookPath("btrfs"); err == nil {
		t.Skip("btrfs is among the programs of root, where it is always found")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- installPrograms(ctx, io.Discard) }()
	waitForFile(t, filepath.Join(dir, "begun"))
	cancel()
	if err := os.WriteFile(filepath.Join(dir, "proceed"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	// A terminal sends Ctrl-C to processes of its session.
	theirs, err := os.ReadFile(filepath.Join(dir, "session"))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if ours := fields[3]; strings.TrimSpace(string(theirs)) == ours {
		t.Errorf("apt-get has the session %s of its caller", ours)
	}
}

func TestAptGetThatFailsTellsWhy(t *testing.T) {
	withAptGet(t, "echo Reading\necho 'E: no such package' >&2\nexit 100")
	err := downloadStack(t.Context(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "E: no such package") {
		t.Errorf("%v", err)
	}
}

// terminal returns both ends of a new one: what the person writes is read from in.
func terminal(t *testing.T) (person, in *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	in, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return person, in
}

func TestOnlyYesIsYes(t *testing.T) {
	for answer, want := range map[string]bool{
		"y\n": true, "YES\n": true, "yes\n": true,
		"\n": false, "n\n": false, "yesterday\n": false, "\x04": false, // Ctrl-D
	} {
		person, in := terminal(t)
		if _, err := person.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if got := ask(t.Context(), in, &out, "Really?"); got != want {
			t.Errorf("%q: %t, want %t", answer, got, want)
		}
		if !strings.HasPrefix(out.String(), "Really? [y/N] ") {
			t.Errorf("it asks %q", &out)
		}
	}
}

func TestCtrlCIsAnAnswerAndNobodyGoesOnReading(t *testing.T) {
	person, in := terminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan bool, 1)
	go func() { ended <- ask(ctx, in, io.Discard, "Really?") }()
	cancel()
	select {
	case yes := <-ended:
		if yes {
			t.Error("it takes that for yes")
		}
	case <-time.After(patience):
		t.Fatal("it goes on asking")
	}
	// What comes now is for who reads next.
	if _, err := person.WriteString("date\n"); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 80)
	if n, err := in.Read(line); err != nil || string(line[:n]) != "date\n" {
		t.Errorf("%q, %v", line[:n], err)
	}
}
