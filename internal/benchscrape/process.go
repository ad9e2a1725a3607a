//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startPatience bounds the wait for an exporter to answer.
const startPatience = 20 * time.Second

// process is an exporter that runs on a loopback port.
type process struct {
	name   string
	cmd    *exec.Cmd
	url    string
	log    bytes.Buffer
	exited chan struct{}
}

// start runs an exporter that sees the pools of one rig and waits until it
// takes connections. In args the text ADDRESS stands for the address to listen
// on.
func start(ctx context.Context, rigDir, name, program string, args ...string) (*process, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "ADDRESS", address)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, url: "http://" + address + "/metrics", exited: make(chan struct{})}
	p.cmd = exec.Command(self, append([]string{isolateFlag, rigDir, program}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	// Nothing of the environment may change how one of them runs.
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	started := make(chan error)
	go func() {
		// The kernel kills the process with the thread that started it.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // its log tells why it ended
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	deadline := time.Now().Add(startPatience)
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			return p, nil
		}
		select {
		case <-p.exited:
			return nil, fmt.Errorf("%s ended: %s", name, strings.TrimSpace(p.log.String()))
		case <-ctx.Done():
			p.stop()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %s: %s", name, address, strings.TrimSpace(p.log.String()))
		}
	}
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// cpu returns the CPU time that all threads of the process, those that have
// ended too, have used: the clock of clock_getcpuclockid(3), which counts in
// nanoseconds where /proc/PID/stat counts in hundredths of a second.
func (p *process) cpu() (time.Duration, error) {
	const schedulerClock = 2 // CPUCLOCK_SCHED, include/linux/posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|schedulerClock), &t); err != nil {
		return 0, fmt.Errorf("CPU time of %s: %w", p.name, err)
	}
	return time.Duration(t.Nano()), nil
}

// memory returns the resident size of the process, and the part of it that is
// its own and not pages of its binary.
func (p *process) memory() (resident, anonymous uint64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if (key != "VmRSS" && key != "RssAnon") || len(fields) != 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		if key == "VmRSS" {
			resident = n << 10
		} else {
			anonymous = n << 10
		}
	}
	if resident == 0 {
		return 0, 0, fmt.Errorf("no VmRSS in the status of %s", p.name)
	}
	return resident, anonymous, nil
}

// findNodeExporter returns Debian's node_exporter, and installs it if it is
// missing. No service of it is started.
func findNodeExporter(out io.Writer) (string, error) {
	const program = "prometheus-node-exporter"
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	fmt.Fprintf(out, "Installing the Debian package %s to compare with.\n", program)
	// Status 101 of policy-rc.d forbids the package to start its service.
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	switch {
	case err == nil:
		defer os.Remove(policy)
		_, err = io.WriteString(f, "#!/bin/sh\nexit 101\n")
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	case !errors.Is(err, os.ErrExist):
		return "", err
	}
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-qq", "-y", "--no-install-recommends", program}} {
		cmd := exec.Command("apt-get", args...) // not to be killed half-way
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if text, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("install %s: %w: %s; name another one with -node-exporter", program, err, strings.TrimSpace(string(text)))
		}
	}
	return exec.LookPath(program)
}
