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
	cmd      *exec.Cmd
	address  string
	stateDir string
	log      bytes.Buffer  // to be read once it has exited
	exited   chan struct{} // closed when it has
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
	s := &server{address: address, stateDir: stateDir, exited: make(chan struct{})}
	args := []string{
		"serve", "--read-only", "--web.listen-address=" + address,
		"--config.file=/dev/null", "--state.dir=" + stateDir, "--log.level=warn",
	}
	if recorded != "" {
		args = append(args, "--path.recorded="+recorded)
	}
	s.cmd = exec.Command(o.governor, args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	// Ctrl-C is for us, and we end it; it never outlives us.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel kills the process with the thread that started it.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // the log tells
			close(s.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, os.RemoveAll(stateDir))
	}
	if err := s.waitReady(ctx); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
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

func (s *server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		if _, err := s.get(ctx, "/-/ready"); err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return s.failure()
		case <-ctx.Done():
			return fmt.Errorf("btrfs-governor does not answer on %s: %w", s.address, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *server) failure() error {
	return fmt.Errorf("btrfs-governor ended: %s", strings.TrimSpace(s.log.String()))
}

func (s *server) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address+path, http.NoBody)
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
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(stopPatience):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	_ = os.RemoveAll(s.stateDir)
}
