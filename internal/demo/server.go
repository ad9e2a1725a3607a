//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const (
	startPatience = 20 * time.Second
	stopPatience  = 20 * time.Second
)

// process is a program that runs and answers on an address.
type process struct {
	name    string
	cmd     *exec.Cmd
	address string
	log     bytes.Buffer  // to be read once it has exited
	exited  chan struct{} // closed when it has
}

// startServer starts a btrfs-governor that only exports, and waits until it is ready.
func startServer(ctx context.Context, o options, out io.Writer, args ...string) (*process, error) {
	address, err := chooseAddress(ctx, o.listen, out)
	if err != nil {
		return nil, err
	}
	args = append([]string{"serve", "--read-only", "--web.listen-address=" + address, "--log.level=warn"}, args...)
	return startProcess(ctx, "btrfs-governor", address, o.governor, args...)
}

// onlyPool is the part of a configuration that leaves out the pools of this machine,
// but for one. A pool that is mounted later is exported too.
func onlyPool(uuid string) (string, error) {
	entries, err := os.ReadDir("/sys/fs/btrfs")
	if err != nil {
		return "", fmt.Errorf("find the pools of this machine: %w", err)
	}
	var others []string
	for _, e := range entries {
		// What has another name is no pool.
		if _, err := btrfs.ParseUUID(e.Name()); err == nil && e.Name() != uuid {
			others = append(others, strconv.Quote(e.Name()))
		}
	}
	return "pools: {exclude: [" + strings.Join(others, ", ") + "]}\n", nil
}

// startProcess starts a program that serves HTTP on an address, and waits until it
// is ready.
func startProcess(ctx context.Context, name, address, program string, args ...string) (*process, error) {
	p := &process{name: name, address: address, exited: make(chan struct{}), cmd: exec.Command(program, args...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	// Ctrl-C is for us, and we end it; it never outlives us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel kills the process with the thread that started it.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // the log tells
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if err := p.waitReady(ctx); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// chooseAddress returns the address, or one with a free port if it is taken.
func chooseAddress(ctx context.Context, address string, out io.Writer) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		host, _, splitErr := net.SplitHostPort(address)
		if splitErr != nil {
			return "", splitErr
		}
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
		if err == nil {
			fmt.Fprintf(out, "%s is taken; serving on %s instead.\n", address, l.Addr())
		}
	}
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (p *process) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		if _, err := p.get(ctx, "/-/ready"); err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return p.failure()
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer on %s: %w", p.name, p.address, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) failure() error {
	return fmt.Errorf("%s ended: %s", p.name, strings.TrimSpace(p.log.String()))
}

func (p *process) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+path, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", path, response.Status)
	}
	return string(body), err
}

func (p *process) scrape(ctx context.Context) (metrics, error) {
	text, err := p.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(text), nil
}

// printURLs shows where to look next.
func (p *process) printURLs(out io.Writer, uuid string) {
	filter := "^btrfs_pool_(free|free_after_balance|statfs_free|stranded|usable)_bytes|^btrfs_metadata_conc"
	if uuid != "" {
		filter += "|^btrfs_device_errors_total.*corruption"
	}
	fmt.Fprintf(out, "Metrics   http://%s/metrics\n", p.address)
	fmt.Fprintf(out, "Look      curl -s http://%s/metrics | grep -E '%s'\n", p.address, filter)
	fmt.Fprintf(out, "End       Ctrl-C, which removes everything\n")
}

// wait serves until ctx is done or the server ends by itself.
func (p *process) wait(ctx context.Context, out io.Writer) error {
	select {
	case <-ctx.Done():
		fmt.Fprintln(out)
		return nil
	case <-p.exited:
		return p.failure()
	}
}

// end ends a process.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopPatience):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}
