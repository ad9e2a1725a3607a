//go:build linux

package btrfstest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// CommandError is a program that failed.
type CommandError struct {
	Args   []string // the command line
	Stderr string
	Err    error // usually an *exec.ExitError
}

func (e *CommandError) Error() string {
	message := fmt.Sprintf("%s: %v", strings.Join(e.Args, " "), e.Err)
	if stderr := strings.TrimSpace(e.Stderr); stderr != "" {
		message += ": " + strings.ReplaceAll(stderr, "\n", "; ")
	}
	return message
}

func (e *CommandError) Unwrap() error { return e.Err }

// runCommand runs a program to its end and returns what it wrote to standard
// output. Every failure is a *CommandError.
func runCommand(name string, args ...string) (string, error) {
	failed := func(err error, stderr string) error {
		return &CommandError{Args: append([]string{name}, args...), Stderr: stderr, Err: err}
	}
	program, err := findProgram(name)
	if err != nil {
		return "", failed(err, "")
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A killed test takes its programs with it. The kernel ties this to the
	// thread that started the program (prctl(2), PR_SET_PDEATHSIG), so the
	// thread must not end before.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return "", failed(err, stderr.String())
	}
	return stdout.String(), nil
}

// findProgram finds a program that may live where only root's PATH leads.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}
