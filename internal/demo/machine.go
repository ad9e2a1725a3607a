//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// buildGovernor builds the program where there is none yet.
func buildGovernor(ctx context.Context, path string, out io.Writer) error {
	_, err := os.Stat(path)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Fprintf(out, "Building %s.\n", path)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/btrfs-governor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", path, err, strings.TrimSpace(string(text)))
	}
	return nil
}

// missingForPools says in half a sentence why no pool can be made here, or
// nothing. It installs the programs that are needed.
func missingForPools(ctx context.Context, out io.Writer) string {
	if os.Geteuid() != 0 {
		return "Making a pool needs root"
	}
	if !kernelHasBtrfs(ctx) {
		return "This kernel has no btrfs"
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Sprintf("There are no loop devices here (%v)", err)
	}
	control.Close()
	if err := installPrograms(ctx, out); err != nil {
		return fmt.Sprintf("The programs mkfs.btrfs and btrfs are missing (%v)", err)
	}
	return ""
}

func kernelHasBtrfs(ctx context.Context) bool {
	has := func() bool {
		list, err := os.ReadFile("/proc/filesystems")
		return err == nil && slices.Contains(strings.Fields(string(list)), "btrfs")
	}
	if has() {
		return true
	}
	// A module that nobody has asked for yet is not in the list.
	_ = exec.CommandContext(ctx, "modprobe", "btrfs").Run()
	return has()
}

// installPrograms installs btrfs-progs if it is missing.
func installPrograms(ctx context.Context, out io.Writer) error {
	// Root's programs may be out of the way of PATH.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"); err != nil {
		return err
	}
	missing := func() error {
		_, err := exec.LookPath("mkfs.btrfs")
		_, err2 := exec.LookPath("btrfs")
		return errors.Join(err, err2)
	}
	if missing() == nil {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("install the package btrfs-progs")
	}
	fmt.Fprintln(out, "Installing the missing Debian package btrfs-progs.")
	if err := aptGet(ctx, "", "update", "-qq"); err != nil {
		return err
	}
	// Ctrl-C does not leave it half installed: what begins here ends.
	if err := aptGet(context.WithoutCancel(ctx), "", "install", "-qq", "-y", "--no-install-recommends", "btrfs-progs"); err != nil {
		return err
	}
	return missing()
}

// aptGet runs apt-get in a directory, until ctx is done. It has a session of its
// own, so that neither Ctrl-C nor the end of the terminal reaches it and dpkg.
func aptGet(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The programs that download for it too.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLine(string(text)))
	}
	return nil
}

// ask asks whoever sits at a terminal. What is not clearly yes is no, and so is
// Ctrl-C.
func ask(ctx context.Context, in *os.File, out io.Writer, question string) bool {
	fmt.Fprintf(out, "%s [y/N] ", question)
	for ctx.Err() == nil {
		// Ctrl-C would not end a read, nor a goroutine that waits for one.
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}}, 100)
		if errors.Is(err, unix.EINTR) || err == nil && ready == 0 {
			continue
		}
		if err != nil {
			break
		}
		// A terminal gives a line at a time (termios(3)).
		line := make([]byte, 80)
		n, err := in.Read(line)
		if err != nil {
			break
		}
		answer := strings.ToLower(strings.TrimSpace(string(line[:n])))
		return answer == "y" || answer == "yes"
	}
	fmt.Fprintln(out)
	return false
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// runProgram runs a program to its end and returns what it printed.
func runProgram(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	text, err := cmd.Output()
	if err != nil {
		var stderr string
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			stderr = ": " + lastLine(string(exit.Stderr))
		}
		return "", fmt.Errorf("%s: %w%s", filepath.Base(name), err, stderr)
	}
	return string(text), nil
}
