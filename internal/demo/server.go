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
	"strings"
	"syscall"
	"time"
)

const (
	startPatience = 20 * time.Second
	stopPatience  = 20 * time.Second
)

// server is the running btrfs-governor.
type server struct {
	*process
	stateDir string
}

// process is a program that runs and answers on an address.
type process struct {
	name    string
	cmd     *exec.Cmd
	address string
	log     bytes.Buffer  // to be read once it has exited
	exited  chan struct{} // closed when it has
}

// startServer starts `btrfs-governor serve` and waits until it is ready. With
// recorded it serves that directory instead of the machine's pools.
func startServer(ctx context.Context, o options, out io.Writer, recorded string) (*server, error) {
	address, err := chooseAddress(ctx, o.listen, out)
	if err != nil {
		return nil, err
	}
	stateDir, err := os.MkdirTemp("", "btrfs-governor-demo-")
	if err != nil {
		return nil, err
	}
	args := []string{
		"serve", "--read-only", "--web.listen-address=" + address,
		"--config.file=/dev/null", "--state.dir=" + stateDir, "--log.level=warn",
	}
	if recorded != "" {
		args = append(args, "--path.recorded="+recorded)
	}
	p, err := startProcess(ctx, "btrfs-governor", address, o.governor, args...)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(stateDir))
	}
	return &server{p, stateDir}, nil
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

func (s *server) scrape(ctx context.Context) (metrics, error) {
	text, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(text), nil
}

// printURLs shows where to look next.
func (s *server) printURLs(out io.Writer, uuid string) {
	filter := "^btrfs_pool_(free|free_after_balance|statfs_free|stranded|usable)_bytes|^btrfs_metadata_conc"
	if uuid != "" {
		filter += "|^btrfs_device_errors_total.*corruption"
	}
	fmt.Fprintf(out, "Metrics   http://%s/metrics\n", s.address)
	fmt.Fprintf(out, "Look      curl -s http://%s/metrics | grep -E '%s'\n", s.address, filter)
	fmt.Fprintf(out, "End       Ctrl-C, which removes everything\n")
}

// wait serves until ctx is done or the server ends by itself.
func (s *server) wait(ctx context.Context, out io.Writer) error {
	select {
	case <-ctx.Done():
		fmt.Fprintln(out)
		return nil
	case <-s.exited:
		return s.failure()
	}
}

// stop ends the server and removes its directory.
func (s *server) stop() {
	s.end()
	_ = os.RemoveAll(s.stateDir)
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
