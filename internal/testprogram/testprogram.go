// Package testprogram finds and starts the programs that tests run against:
// promtool, Prometheus, Alertmanager, btrbk. It is for tests only.
package testprogram

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"
)

// Find returns the path of a program of a Debian package. Without it the test is
// skipped, and in CI, where .ci/packages installs it, it fails.
func Find(t testing.TB, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("there is no %s (Debian package %s): %v", program, debianPackage, err)
	default:
		t.Skipf("there is no %s (Debian package %s)", program, debianPackage)
	}
	return path
}

// listening is what Prometheus and Alertmanager log of their address.
var listening = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

// Program is a Prometheus or an Alertmanager.
type Program struct {
	// Address is where it listens, also after it was started again.
	Address string

	t    testing.TB
	path string
	args []string
	kill func()
}

// Serve starts Prometheus or Alertmanager on a free port of loopback. It ends with
// the test.
func Serve(t testing.TB, path string, args ...string) *Program {
	t.Helper()
	p := &Program{Address: "127.0.0.1:0", t: t, path: path, args: args}
	p.Start()
	return p
}

// Start starts it again after Kill.
func (p *Program) Start() {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), p.path, append(slices.Clone(p.args), "--web.listen-address="+p.Address)...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	addresses, read := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(read)
		defer close(addresses)
		told := false
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil && !told {
				addresses <- m[1]
				told = true
			}
		}
	}()
	p.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	p.t.Cleanup(p.kill)
	address, ok := <-addresses
	if !ok {
		p.t.Fatalf("%s ended before it listened", p.path)
	}
	p.Address = address
	waitReady(p.t, address)
}

// Kill ends it with SIGKILL, and returns when it has ended.
func (p *Program) Kill() { p.kill() }

// patience is how long a program may take until it answers.
const patience = 30 * time.Second

// waitReady waits until a program answers: it listens before it has read its data.
func waitReady(t testing.TB, address string) {
	t.Helper()
	deadline, again := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer again.Stop()
	for {
		resp, err := http.Get("http://" + address + "/-/ready") //nolint:noctx // bounded by the deadline of the test
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%s is not ready within %s: %v", address, patience, err)
		}
	}
}
