package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// throughSocket is a client of the API socket.
func throughSocket(t *testing.T, path string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: patience, Transport: transport}
}

func socketArgs(t *testing.T, socket string) []string {
	t.Helper()
	return []string{
		"--web.listen-address=127.0.0.1:0", "--config.file=" + os.DevNull, "--state.dir=" + t.TempDir(), "--api.socket=" + socket,
	}
}

func TestSocketIsMadeServedAndRemoved(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "new", "api.sock")
	p := startServe(t, 1, socketArgs(t, socket))
	client := throughSocket(t, socket)
	eventually(t, "the socket answers", func() bool {
		status, _, err := request(client, "GET", "http://socket/api/v1/jobs")
		return err == nil && status == 200
	})
	if info, err := os.Stat(socket); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket: %v %v, want mode 0660", info, err)
	}
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its directory: %v %v, want mode 0755", info, err)
	}
	// It needs no token, and TCP does.
	const unknown = "/api/v1/pools/no-such-pool/scrub"
	if status, body, err := request(client, "POST", "http://socket"+unknown); err != nil || status != 404 {
		t.Errorf("over the socket: %d %s %v, want 404", status, body, err)
	}
	if status, body := p.do("POST", unknown); status != 401 {
		t.Errorf("over TCP without the token: %d %s, want 401", status, body)
	}
	if want := "who=\"unix socket, uid "; !strings.Contains(p.logged(), want) {
		t.Errorf("the log does not say %s", want)
	}
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestEventStreamEndsWithTheDaemon(t *testing.T) {
	p := startServe(t, 1, socketArgs(t, ""))
	resp, err := p.client.Get("http://" + p.addrs[0] + "/api/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 0 || strings.Contains(p.logged(), "Gave up waiting") {
		t.Errorf("exit status %d; the log:\n%s", status, p.logged())
	}
}

func TestSocketOfAKilledDaemonIsTakenOver(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	args := socketArgs(t, socket)
	first := startServe(t, 1, args)
	first.signal(syscall.SIGKILL)
	first.wait()
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("nothing is left to take over: %v", err)
	}
	startServe(t, 1, args)
	client := throughSocket(t, socket)
	eventually(t, "the socket answers", func() bool {
		status, _, err := request(client, "GET", "http://socket/-/healthy")
		return err == nil && status == 200
	})
}

func TestSocketThatIsInUseIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "file")
	writeFile(t, file, "precious")
	for path, want := range map[string]string{
		taken:              "another btrfs-governor runs",
		file:               "--api.socket",
		file + "/api.sock": "--api.socket",
		filepath.Join(dir, strings.Repeat("x", 120)): "--api.socket",
	} {
		got, err := listenUnix(t.Context(), path)
		if err == nil {
			got.Close()
			t.Errorf("%s: it listens", path)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %q", path, err, want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file holds %q (%v)", text, err)
	}
	if _, err := os.Lstat(taken); err != nil {
		t.Errorf("the socket of the other: %v", err)
	}
}
