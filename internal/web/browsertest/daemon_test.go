package browsertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait of these tests.
const patience = 60 * time.Second

const theToken = "0123456789abcdef0123456789abcdef"

// program builds the daemon once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "btrfs-governor-browsertest-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "btrfs-governor")
	output, err := exec.Command("go", "build", "-o", path, "../../../cmd/btrfs-governor").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build the program: %w\n%s", err, output)
	}
	return path, err
})

func TestMain(m *testing.M) {
	status := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(status)
}

// daemon is a running `btrfs-governor serve`.
type daemon struct {
	url     string
	kill    func()
	process *os.Process
	mu      sync.Mutex
	output  strings.Builder
}

// serve starts the daemon. It ends with the test.
func serve(t *testing.T, args ...string) *daemon {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{}
	cmd := exec.Command(path, append([]string{"serve", "--web.listen-address=127.0.0.1:0"}, args...)...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	d.process = cmd.Process
	addresses, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		d.read(stderr, addresses)
		_ = cmd.Wait()
	}()
	d.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("the log of the daemon:\n%s", d.log())
		}
	})
	select {
	case address := <-addresses:
		d.url = "http://" + address
	case <-ended:
		t.Fatalf("the daemon ended:\n%s", d.log())
	case <-time.After(patience):
		t.Fatalf("the daemon does not listen:\n%s", d.log())
	}
	return d
}

func (d *daemon) read(r io.Reader, addresses chan<- string) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		d.mu.Lock()
		fmt.Fprintln(&d.output, lines.Text())
		d.mu.Unlock()
		if _, address, ok := strings.Cut(lines.Text(), `msg="Listening on" address=`); ok {
			addresses <- strings.Trim(address, `"`)
		}
	}
}

func (d *daemon) log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.output.String()
}

// serveRecorded serves the recorded pools, which cannot be changed.
func serveRecorded(t *testing.T) *daemon {
	t.Helper()
	return serve(t, "--read-only", "--path.recorded=../../../testdata/pools")
}

// serveHere serves the pools of this machine, and takes commands.
func serveHere(t *testing.T, config string) *daemon {
	t.Helper()
	return serveIn(t, t.TempDir(), config)
}

// serveIn does so with a state directory.
func serveIn(t *testing.T, dir, config string) *daemon {
	t.Helper()
	for name, text := range map[string]string{"token": theToken + "\n", "config.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return serve(t, "--state.dir="+dir, "--api.socket="+filepath.Join(dir, "api.sock"), "--config.file="+filepath.Join(dir, "config.yml"))
}

// eventually waits for a condition.
func eventually(ctx context.Context, t *testing.T, what string, condition func() bool) {
	t.Helper()
	within(ctx, t, patience, what, condition)
}

// within waits for a condition for so long.
func within(ctx context.Context, t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
