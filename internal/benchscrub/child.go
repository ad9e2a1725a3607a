//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/scrub/throttle"
)

// childPatience is how long a child that was told to end may take.
const childPatience = 60 * time.Second

// child is this program in another role. It is told what to do by its second
// argument and by lines on its standard input, whose end tells it to end, and
// answers with JSON values on its standard output. It dies with this process.
type child struct {
	role    string
	process *os.Process
	stdin   io.WriteCloser
	answers *json.Decoder
	log     bytes.Buffer  // not to be read before it has exited
	exited  chan struct{} // closed when it has
	err     error         // how it exited
}

func startChild(role string, nice int, config any, log io.Writer) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argument, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	c := &child{role: role, exited: make(chan struct{})}
	cmd := exec.Command(self, role, string(argument))
	cmd.Stderr = io.MultiWriter(&c.log, log)
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	answers, stdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = stdout
	c.answers = json.NewDecoder(answers)
	cgroup, err := newCgroup(role)
	if err != nil {
		fmt.Fprintf(log, "%s shares its cgroup, and sees bursts later than a service would: %v\n", role, err)
	}
	if err := startBound(cmd, nice, cgroup, func(err error) {
		c.err = err
		cgroup.remove()
		close(c.exited)
	}); err != nil {
		cgroup.remove()
		answers.Close()
		stdout.Close()
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	c.process = cmd.Process
	stdout.Close()
	go func() {
		// What was not read is lost with the pipe.
		<-c.exited
		time.Sleep(time.Second)
		answers.Close()
	}()
	return c, nil
}

// The nice values of processes: a disk, and the clock of those who use it, do
// not slow down when the machine has other work. Scrubs get no such favour.
const (
	niceDisk  = -15
	nicePlain = 0
)

// favour sets the nice value of all threads of this process; those to come
// inherit it.
func favour(nice int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("set the nice value: %w", err)
		}
	}
	return nil
}

// startBound starts a program that is killed with this one, in a process group
// of its own, so that Ctrl-C does not end it before this one has told it to.
// When it has ended it calls ended.
func startBound(cmd *exec.Cmd, nice int, cgroup *cgroup, ended func(error)) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.dir.Fd())
	}
	started := make(chan error)
	go func() {
		// The kernel kills the process with the thread that started it, and
		// gives it the nice value of that. The thread is not used again.
		runtime.LockOSThread()
		err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			ended(cmd.Wait())
		}
	}()
	return <-started
}

// answer reads the next answer.
func (c *child) answer(to any) error {
	if err := c.answers.Decode(to); err != nil {
		return fmt.Errorf("%s: %w", c.role, c.failure(err))
	}
	return nil
}

// failure is what the child said of its failure, or err.
func (c *child) failure(err error) error {
	select {
	case <-c.exited:
	case <-time.After(time.Second):
		return err
	}
	if lines := strings.Split(strings.TrimSpace(c.log.String()), "\n"); lines[0] != "" {
		return fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return err
}

// kill ends the child at once.
func (c *child) kill() {
	_ = c.process.Kill() // it may have ended
	c.stdin.Close()
	<-c.exited
}

// stop tells the child to end and waits for that.
func (c *child) stop() error {
	c.stdin.Close()
	select {
	case <-c.exited:
	case <-time.After(childPatience):
		c.kill()
		return fmt.Errorf("%s does not end", c.role)
	}
	if c.err != nil {
		return fmt.Errorf("%s: %w", c.role, c.failure(c.err))
	}
	return nil
}

// cgroup is one that a child has for itself, as a service of systemd has.
type cgroup struct{ dir *os.File }

// newCgroup makes one beneath that of this process.
func newCgroup(name string) (*cgroup, error) {
	parent := throttle.Cgroup("/proc", "/sys")
	if parent == "" {
		return nil, errors.New("this process has none")
	}
	dir, err := os.MkdirTemp(parent, "benchscrub"+name+"-")
	if err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		_ = os.Remove(dir)
		return nil, err
	}
	return &cgroup{f}, nil
}

func (c *cgroup) remove() {
	if c == nil {
		return
	}
	c.dir.Close()
	_ = os.Remove(c.dir.Name()) // costs nothing if it stays
}
