package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait of these tests.
const patience = 90 * time.Second

// asProgram is the environment variable that makes the test binary the program
// itself, so that the tests run real processes.
const asProgram = "BTRFS_GOVERNOR_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		// systemd sets this between fork and exec, where we cannot.
		if os.Getenv("LISTEN_FDS") != "" {
			os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		}
		main()
	}
	os.Exit(m.Run())
}

// process is a running `btrfs-governor serve`.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	addrs  []string      // where it listens
	client *http.Client  // with connections of its own
	exited chan struct{} // closed when it has ended

	mu  sync.Mutex
	log bytes.Buffer
}

type option func(*exec.Cmd)

func withEnv(assignments ...string) option {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, assignments...) }
}

func withFile(f *os.File) option {
	return func(cmd *exec.Cmd) { cmd.ExtraFiles = append(cmd.ExtraFiles, f) }
}

// startServe starts the daemon and waits until it listens on as many addresses
// as given. It ends with the test.
func startServe(t testing.TB, listeners int, args []string, options ...option) *process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, exited: make(chan struct{}), client: &http.Client{Timeout: patience, Transport: &http.Transport{}}}
	p.cmd = exec.Command(program, append([]string{"serve"}, args...)...)
	p.cmd.Env = append(os.Environ(), asProgram+"=1", "NOTIFY_SOCKET=", "LISTEN_FDS=")
	for _, o := range options {
		o(p.cmd)
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan string, listeners)
	go func() {
		defer close(p.exited)
		p.readLog(stderr, listening)
		_ = p.cmd.Wait() // the tests look at the ProcessState
	}()
	t.Cleanup(func() {
		p.client.CloseIdleConnections()
		_ = p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("the log of the process:\n%s", p.logged())
		}
	})
	for range listeners {
		select {
		case addr := <-listening:
			p.addrs = append(p.addrs, addr)
		case <-p.exited:
			t.Fatalf("it ended with %v before it listened:\n%s", p.cmd.ProcessState, p.logged())
		case <-time.After(patience):
			t.Fatalf("it does not listen:\n%s", p.logged())
		}
	}
	return p
}

// readLog collects the log and sends on the addresses that it names.
func (p *process) readLog(r io.Reader, listening chan<- string) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		p.mu.Lock()
		fmt.Fprintln(&p.log, lines.Text())
		p.mu.Unlock()
		if strings.Contains(lines.Text(), `msg="Listening on"`) {
			_, addr, _ := strings.Cut(lines.Text(), "address=")
			listening <- strings.Trim(addr, `"`)
		}
	}
}

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits for the end of the process and returns its exit status.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatal("the process does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// do sends a request to the first address and returns status and body.
func (p *process) do(method, path string) (int, string) {
	p.t.Helper()
	status, body, err := request(p.client, method, "http://"+p.addrs[0]+path)
	if err != nil {
		p.t.Fatal(err)
	}
	return status, body
}

func request(client *http.Client, method, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), errors.Join(err, resp.Body.Close())
}

// metric returns the value of a series without labels.
func (p *process) metric(name string) string {
	p.t.Helper()
	_, body := p.do(http.MethodGet, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
