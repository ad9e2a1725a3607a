// Package testprogram finds and starts the programs that tests run against:
// promtool, Prometheus, Alertmanager, btrbk. It is for tests only.
package testprogram

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"regexp"
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

// Serve starts Prometheus or Alertmanager on a free port of loopback, and returns
// its address. It ends with the test.
func Serve(t testing.TB, path string, args ...string) (address string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, append(args, "--web.listen-address=127.0.0.1:0")...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
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
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	address, ok := <-addresses
	if !ok {
		t.Fatalf("%s ended before it listened", path)
	}
	waitReady(t, address)
	return address
}

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
