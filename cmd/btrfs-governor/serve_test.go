package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"
)

// recordedArgs make serve run anywhere: on recorded pools (here none), on a
// port of its own.
func recordedArgs(t *testing.T, more ...string) []string {
	t.Helper()
	return append([]string{
		"--read-only", "--path.recorded=" + t.TempDir(), "--web.listen-address=127.0.0.1:0",
	}, more...)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestServeAnswersAndStops(t *testing.T) {
	state := filepath.Join(t.TempDir(), "new", "state")
	p := startServe(t, 1, []string{
		"--path.recorded=" + t.TempDir(), "--web.listen-address=127.0.0.1:0", "--state.dir=" + state,
	})
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/metrics", 200, "btrfs_governor_build_info{"},
		{"GET", "/metrics", 200, "\ngo_goroutines "},
		{"GET", "/metrics", 200, "\nprocess_open_fds "},
		{"GET", "/metrics", 200, "\nbtrfs_governor_config_last_reload_successful 1\n"},
		{"GET", "/metrics?collect[]=capacity", 200, "btrfs_governor_build_info{"},
		{"GET", "/metrics?collect[]=nonsense", 400, `"nonsense"`},
		{"GET", "/", 200, `href="/metrics"`},
		{"GET", "/-/healthy", 200, "healthy"},
		{"GET", "/-/ready", 200, "ready"},
		{"POST", "/-/reload", 200, "reloaded"},
		{"GET", "/nothing", 404, ""},
	} {
		status, body := p.do(tt.method, tt.path)
		if status != tt.status || !strings.Contains(body, tt.body) {
			t.Errorf("%s %s: got %d %q, want %d and %q", tt.method, tt.path, status, body, tt.status, tt.body)
		}
	}
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v %v, want mode 0700", info, err)
	}
	if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
		t.Errorf("state directory holds %v (%v), want nothing", left, err)
	}
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d after SIGTERM, want 0", status)
	}
}

func TestHundredScrapesAtOnceAreAllAnswered(t *testing.T) {
	p := startServe(t, 1, recordedArgs(t))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			status, _, err := request(p.client, "GET", "http://"+p.addrs[0]+"/metrics")
			if err != nil || status != 200 {
				t.Errorf("got %d %v, want 200", status, err)
			}
		})
	}
	wg.Wait()
}

// certificate writes a new certificate for 127.0.0.1 and its key, and returns
// a pool that trusts it.
func certificate(t *testing.T, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	writeFile(t, certFile, string(cert))
	writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return pool
}

func TestTLSAndBasicAuth(t *testing.T) {
	dir := t.TempDir()
	roots := certificate(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	webConfig := filepath.Join(dir, "web.yml")
	writeFile(t, webConfig, fmt.Sprintf("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\nbasic_auth_users: {prometheus: %s}\n", hash))

	// Two listeners must share neither handlers nor TLS state.
	p := startServe(t, 2, recordedArgs(t, "--web.listen-address=127.0.0.1:0", "--web.config.file="+webConfig))
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	for _, addr := range p.addrs {
		for _, tt := range []struct {
			user string
			want int
		}{{"", 401}, {"prometheus:wrong@", 401}, {"nobody:secret@", 401}, {"prometheus:secret@", 200}} {
			for _, path := range []string{"/metrics", "/", "/-/ready"} {
				status, _, err := request(client, "GET", "https://"+tt.user+addr+path)
				if err != nil || status != tt.want {
					t.Errorf("%q %s: got %d %v, want %d", tt.user, path, status, err, tt.want)
				}
			}
		}
		if status, _, err := request(client, "GET", "http://"+addr+"/metrics"); err == nil && status == 200 {
			t.Error("plain HTTP is answered")
		}
	}
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

func TestSystemdSocketActivation(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := startServe(t, 1, []string{"--read-only", "--path.recorded=" + t.TempDir(), "--web.systemd-socket"},
		withFile(f), withEnv("LISTEN_FDS=1"))
	if p.addrs[0] != l.Addr().String() {
		t.Errorf("listens on %s, want the socket passed, %s", p.addrs[0], l.Addr())
	}
	if status, _ := p.do("GET", "/metrics"); status != 200 {
		t.Errorf("got %d, want 200", status)
	}
}

func TestSystemdIsToldTheState(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := new(net.ListenConfig).ListenPacket(t.Context(), "unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 256)
		if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, _, err := l.ReadFrom(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), want) {
			t.Fatalf("got %q %v, want %q", buf[:n], err, want)
		}
	}
	p := startServe(t, 1, recordedArgs(t), withEnv("NOTIFY_SOCKET="+socket))
	expect("READY=1")
	p.signal(syscall.SIGHUP)
	expect("RELOADING=1\nMONOTONIC_USEC=")
	expect("READY=1")
	p.signal(syscall.SIGTERM)
	expect("STOPPING=1")
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

func TestReloadKeepsTheLastGoodConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yml")
	writeFile(t, file, "scrape: {timeout: 5s}\n")
	p := startServe(t, 1, recordedArgs(t, "--config.file="+file))
	const successful = "btrfs_governor_config_last_reload_successful"
	problem := file + `:1: unknown key "scrap" (known keys: scrape, pools, api, scrub, snapshots, alertmanager, notify)`

	check := func(t *testing.T, reload func(status int, answer string)) {
		writeFile(t, file, "scrap: {timeout: 5s}\n")
		reload(500, problem)
		eventually(t, "the bad reload shows in the metrics", func() bool { return p.metric(successful) == "0" })
		eventually(t, "the log says what is wrong", func() bool {
			return strings.Contains(p.logged(), strings.ReplaceAll(problem, `"`, `\"`))
		})
		writeFile(t, file, "scrape: {timeout: 6s}\n")
		reload(200, "reloaded")
		eventually(t, "the good reload shows in the metrics", func() bool { return p.metric(successful) == "1" })
	}
	t.Run("SIGHUP", func(t *testing.T) {
		check(t, func(int, string) { p.signal(syscall.SIGHUP) })
	})
	t.Run("POST", func(t *testing.T) {
		check(t, func(status int, answer string) {
			if got, body := p.do("POST", "/-/reload"); got != status || !strings.Contains(strings.ReplaceAll(body, `\"`, `"`), answer) {
				t.Errorf("got %d %q, want %d and %q", got, body, status, answer)
			}
		})
	})
}

// The scrape hangs for as long as the test wants, since the mount table is a
// named pipe.
func TestStopAnswersRunningScrape(t *testing.T) {
	proc := t.TempDir()
	mountinfo := filepath.Join(proc, "self", "mountinfo")
	if err := os.Mkdir(filepath.Dir(mountinfo), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(mountinfo, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startServe(t, 1, []string{"--read-only", "--web.listen-address=127.0.0.1:0", "--path.procfs=" + proc, "--path.sysfs=" + proc, withTimeout(t, 2*patience)})
	answered := make(chan error, 1)
	go func() {
		status, body, err := request(p.client, "GET", "http://"+p.addrs[0]+"/metrics")
		if err == nil && (status != 200 || !strings.Contains(body, "btrfs_governor_build_info")) {
			err = fmt.Errorf("got %d %q", status, body)
		}
		answered <- err
	}()
	var pipe int
	eventually(t, "the scrape reads the mount table", func() bool {
		var err error
		pipe, err = unix.Open(mountinfo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err == nil
	})
	p.signal(syscall.SIGTERM)
	eventually(t, "new connections are refused", func() bool {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.addrs[0])
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	select {
	case err := <-answered:
		t.Fatalf("the scrape ended before it could: %v", err)
	case <-p.exited:
		t.Fatal("the process ended before the scrape")
	default:
	}
	if err := unix.Close(pipe); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the running scrape: %v", err)
	}
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// runInProcess runs a command line that ends by itself.
func runInProcess(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errs strings.Builder
	status = run(ctx, args, &out, &errs)
	if ctx.Err() != nil {
		t.Fatalf("%q does not end", args)
	}
	return status, out.String(), errs.String()
}

func TestBadInputIsOneSentence(t *testing.T) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// A port that is free: nothing may listen on it afterwards.
	free := freeAddress(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	plain := file("plain", "")
	badConfig := file("bad.yml", "scrape:\n  timeout: 8s\n  timeuot: 8s\n")
	badWeb := file("web.yml", "tls_server: {}\n")
	badPassword := file("password.yml", "basic_auth_users: {me: secret}\n")
	missing := filepath.Join(dir, "missing")
	recorded := "--path.recorded=" + t.TempDir()
	badReceiver := file("receiver.yml", receiverWithout(missing))
	badPeer := file("peer.yml", "alertmanager: {silences: {matchers: [[alertname=a]], alertmanagers: [{url: 'http://localhost:1', http_config: {basic_auth: {password_file: "+missing+"}}}]}}\n")

	for name, tt := range map[string]struct {
		args []string // after serve --web.listen-address=FREE
		want string
	}{
		"unknown flag":        {[]string{"--foo"}, "unknown long flag '--foo'; see btrfs-governor serve --help"},
		"unknown collector":   {[]string{"--collector.nonsense"}, "unknown long flag '--collector.nonsense'; see btrfs-governor serve --help"},
		"argument":            {[]string{"now"}, "unexpected now; see btrfs-governor serve --help"},
		"no value":            {[]string{"--state.dir"}, "expected argument for flag '--state.dir'; see btrfs-governor serve --help"},
		"max requests":        {[]string{"--web.max-requests=-1"}, `--web.max-requests must be a number from 0 up, not "-1"; see btrfs-governor serve --help`},
		"log level":           {[]string{"--log.level=loud"}, `log level "loud" is none of debug, info, warn, error`},
		"log format":          {[]string{"--log.format=xml"}, `log format "xml" is none of logfmt, json`},
		"telemetry path":      {[]string{"--web.telemetry-path=metrics"}, `--web.telemetry-path: "metrics" is no plain absolute path such as /metrics`},
		"telemetry path used": {[]string{"--web.telemetry-path=/-/ready"}, `--web.telemetry-path: "/-/ready" is taken; choose another path such as /metrics`},
		"bad config": {[]string{"--config.file=" + badConfig},
			badConfig + `:3: unknown key "timeuot" in "scrape" (known keys: timeout)`},
		"bad config, checked": {[]string{"--config.check", "--config.file=" + badConfig},
			badConfig + `:3: unknown key "timeuot" in "scrape" (known keys: timeout)`},
		"missing file of a token, checked": {[]string{"--config.check", "--config.file=" + badReceiver},
			`notify.receivers: receiver "phone": token_file: open ` + missing + ": no such file or directory"},
		"missing file of a password, checked": {[]string{"--config.check", "--config.file=" + badPeer},
			"alertmanager.silences.alertmanagers[0].http_config: basic_auth.password_file: no such file or directory"},
		"missing config": {[]string{"--config.file=" + missing}, "read the configuration: open " + missing + ": no such file or directory"},
		"bad web config": {[]string{"--web.config.file=" + badWeb},
			"--web.config.file=" + badWeb + ": yaml: unmarshal errors: line 1: field tls_server not found in type web.Config"},
		"bad web config, checked": {[]string{"--config.check", "--web.config.file=" + badWeb},
			"--web.config.file=" + badWeb + ": yaml: unmarshal errors: line 1: field tls_server not found in type web.Config"},
		"web password in the clear": {[]string{"--web.config.file=" + badPassword},
			"--web.config.file=" + badPassword + ": crypto/bcrypt: hashedSecret too short to be a bcrypted password"},
		"missing web config": {[]string{"--web.config.file=" + missing}, "--web.config.file=" + missing + ": open " + missing + ": no such file or directory"},
		"state directory under a file": {[]string{"--state.dir=" + plain + "/state"},
			"create the state directory: mkdir " + plain + ": not a directory; make it writable, name another one with --state.dir, or give --read-only, which needs none"},
		"state directory not writable": {[]string{"--state.dir=/proc"},
			"write to the state directory /proc: no such file or directory; make it writable, name another one with --state.dir, or give --read-only, which needs none"},
		"missing recorded pools": {[]string{"--read-only", "--path.recorded=" + missing}, "--path.recorded: recorded pools: stat " + missing + ": no such file or directory"},
		"address in use": {[]string{"--read-only", recorded, "--web.listen-address=" + taken.Addr().String()},
			"listen on " + taken.Addr().String() + ": the address is in use; stop the program that has it, or choose another with --web.listen-address"},
		"no address": {[]string{"--read-only", recorded, "--web.listen-address=127.0.0.1"},
			"--web.listen-address=127.0.0.1: listen tcp: address 127.0.0.1: missing port in address"},
		"no vsock address": {[]string{"--read-only", recorded, "--web.listen-address=vsock://:many"},
			"--web.listen-address=vsock://:many is no vsock address such as vsock://:10134"},
		"no systemd socket": {[]string{"--read-only", recorded, "--web.systemd-socket"},
			"--web.systemd-socket: systemd passed no socket; start the program through a .socket unit"},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := runInProcess(t, append([]string{"serve", "--web.listen-address=" + free}, tt.args...)...)
			if status == 0 {
				t.Error("exit status 0")
			}
			if want := "btrfs-governor: " + tt.want + "\n"; stderr != want {
				t.Errorf("stderr\n got %s\nwant %s", stderr, want)
			}
			if stdout != "" {
				t.Errorf("stdout: %q", stdout)
			}
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", free)
			if err != nil {
				t.Fatalf("a listener is left: %v", err)
			}
			l.Close()
		})
	}
}

func TestBadCommandIsOneSentence(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "no command given; see btrfs-governor --help"},
		{[]string{"sreve"}, `expected command but got "sreve"; see btrfs-governor --help`},
		{[]string{"--foo"}, "unknown long flag '--foo'; see btrfs-governor --help"},
	} {
		status, stdout, stderr := runInProcess(t, tt.args...)
		if status == 0 || stdout != "" || stderr != "btrfs-governor: "+tt.want+"\n" {
			t.Errorf("%q: got %d, %q, %q, want %q", tt.args, status, stdout, stderr, tt.want)
		}
	}
}

// receiverWithout is a configuration with a receiver whose token is in that file.
func receiverWithout(tokenFile string) string {
	return "notify: {receivers: [{name: phone, type: gotify, url: 'http://127.0.0.1:1', token_file: " + tokenFile + "}]}\n"
}

// One mistake in the file of a token must not stop the exporter of a machine, and a
// reload stays strict.
func TestStartWithAReceiverThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	socket, configFile, tokenFile := filepath.Join(dir, "api.sock"), filepath.Join(dir, "config.yml"), filepath.Join(dir, "token")
	writeFile(t, configFile, receiverWithout(tokenFile))
	p := startServe(t, 1, []string{"--web.listen-address=127.0.0.1:0", "--config.file=" + configFile, "--state.dir=" + t.TempDir(), "--api.socket=" + socket})
	if want := "A receiver cannot be used"; !strings.Contains(p.logged(), want) {
		t.Errorf("the log does not say %q:\n%s", want, p.logged())
	}
	if status, body := p.do("POST", "/-/reload"); status != 500 || !strings.Contains(body, "token_file") {
		t.Errorf("a reload: %d %s", status, body)
	}
	const message = `{"version":"4","groupKey":"a","status":"firing","alerts":[{"status":"firing","labels":{"alertname":"a"},"startsAt":"2026-03-07T19:45:57Z","fingerprint":"a1b2c3d4e5f60718"}]}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://socket/api/v1/notify/phone", strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := throughSocket(t, socket).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a notification: %s", resp.Status)
	}
	if _, body := p.do("GET", "/metrics"); !strings.Contains(body, "btrfs_governor_notifications_queued{receiver=\"phone\"} 1\n") {
		t.Error("it does not wait")
	}
	writeFile(t, tokenFile, "a-token\n")
	if status, body := p.do("POST", "/-/reload"); status != 200 {
		t.Errorf("a reload, mended: %d %s", status, body)
	}
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

func TestHelpVersionAndCheckSucceed(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.yml")
	writeFile(t, good, "scrape: {timeout: 1s}\n")
	for _, tt := range []struct {
		args []string
		want string // in stdout, once
	}{
		{[]string{"--help"}, "usage: btrfs-governor"},
		{[]string{"-h"}, "usage: btrfs-governor"},
		{[]string{"help"}, "usage: btrfs-governor"},
		{[]string{"help", "serve"}, "--config.file"},
		{[]string{"serve", "--help"}, "--[no-]collector.capacity"},
		{[]string{"--version"}, "btrfs-governor, version"},
		{[]string{"serve", "--version"}, "btrfs-governor, version"},
		{[]string{"serve", "--config.check", "--config.file=" + good}, "The configuration is good."},
	} {
		status, stdout, stderr := runInProcess(t, tt.args...)
		if status != 0 || strings.Count(stdout, tt.want) != 1 || stderr != "" {
			t.Errorf("%q: got %d, %q, %q", tt.args, status, stdout, stderr)
		}
	}
}

// freeAddress returns an address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestRunLeavesNothingBehind(t *testing.T) {
	var goroutines, files int
	for i := range 4 {
		if i == 1 { // the first run starts what the runtime keeps, such as its signal handler
			goroutines, files = runtime.NumGoroutine(), openFiles(t)
		}
		ctx, cancel := context.WithCancel(t.Context())
		addr := freeAddress(t)
		status := make(chan int, 1)
		go func() {
			status <- run(ctx, append([]string{"serve"}, recordedArgs(t, "--web.listen-address="+addr)...), io.Discard, io.Discard)
		}()
		client := &http.Client{Timeout: patience, Transport: &http.Transport{}}
		eventually(t, "it is ready", func() bool {
			code, _, err := request(client, "GET", "http://"+addr+"/-/ready")
			return err == nil && code == 200
		})
		cancel()
		if got := <-status; got != 0 {
			t.Errorf("exit status %d, want 0", got)
		}
		client.CloseIdleConnections()
	}
	eventually(t, "all goroutines and files are gone", func() bool {
		return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
