package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// TestHistoryOutlivesKills: the daemon takes a sample of a pool, is killed, and
// tells when the pool will be full from what was there before.
func TestHistoryOutlivesKills(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	uuid, err := btrfs.ParseUUID(pool.UUID)
	must(t, err)
	dir := t.TempDir()
	// Ten days in which it lost 1 GB a day.
	store, err := history.Open(log.NewNopLogger(), state.NewDir(dir), time.Now)
	must(t, err)
	now := time.Now().Truncate(history.Step).Add(-history.Step)
	for at := now.Add(-10 * 24 * time.Hour); !at.After(now); at = at.Add(history.Step) {
		must(t, store.Add(uuid, history.Sample{Time: at, FreeExpected: btrfs.Some(uint64(1e9 * (1 + now.Sub(at).Hours()/24)))}))
	}
	for range 2 {
		p := startServe(t, 1, []string{"--state.dir=" + dir, "--api.socket=" + filepath.Join(t.TempDir(), "api.sock"), "--web.listen-address=127.0.0.1:0"})
		var answer struct {
			Samples []struct {
				Time time.Time `json:"time"`
				Free uint64    `json:"free_bytes"`
			} `json:"samples"`
		}
		eventually(t, "the daemon has taken a sample", func() bool {
			_, body := p.do("GET", "/api/v1/pools/"+pool.UUID+"/history?days=1")
			must(t, json.Unmarshal([]byte(body), &answer))
			return len(answer.Samples) > 0 && answer.Samples[len(answer.Samples)-1].Free > 0
		})
		var capacity struct {
			Forecast struct {
				Days   float64 `json:"days_to_full"`
				Rate   float64 `json:"bytes_per_day"`
				Source string  `json:"source"`
			} `json:"forecast"`
		}
		_, body := p.do("GET", "/api/v1/pools/"+pool.UUID+"/capacity")
		must(t, json.Unmarshal([]byte(body), &capacity))
		if f := capacity.Forecast; f.Source != "local" || f.Days <= 0 || f.Days > 2 || f.Rate < 0.9e9 || f.Rate > 1.1e9 {
			t.Errorf("the forecast is %+v", f)
		}
		must(t, p.cmd.Process.Kill())
		<-p.exited
	}
	var st syscall.Stat_t
	must(t, syscall.Stat(filepath.Join(dir, "history-"+pool.UUID+".ring"), &st))
	if st.Blocks*512 > 2<<20 {
		t.Errorf("it takes %d bytes", st.Blocks*512)
	}
	// With --read-only nothing is kept, and nothing is touched.
	empty := t.TempDir()
	p := startServe(t, 1, []string{"--read-only", "--state.dir=" + empty, "--web.listen-address=127.0.0.1:0"})
	if status, body := p.do("GET", "/api/v1/pools/"+pool.UUID+"/history"); status != 403 || !strings.Contains(body, "keeps no history") {
		t.Errorf("with --read-only: %d %s", status, body)
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("with --read-only there are %v (%v)", left, err)
	}
}

func TestURLOfPrometheusIsChecked(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		writeFile(t, filepath.Join(dir, name), content)
		return "--prometheus.http-config=" + filepath.Join(dir, name)
	}
	const address = "--prometheus.url=https://nas.example.org"
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"scheme":          {[]string{"--prometheus.url=ftp://nas"}, []string{"--prometheus.url", "http://127.0.0.1:9090"}},
		"password":        {[]string{"--prometheus.url=https://reader:hunter2@nas"}, []string{"--prometheus.url", "--prometheus.http-config"}},
		"no URL":          {[]string{file("good.yml", "")}, []string{"--prometheus.http-config", "give --prometheus.url too"}},
		"no file":         {[]string{address, "--prometheus.http-config=" + dir + "/none"}, []string{"--prometheus.http-config: open " + dir + "/none: no such file"}},
		"unknown key":     {[]string{address, file("key.yml", "basic_auth:\n  hunter2: a\n")}, []string{"key.yml:2: unknown key", "password_file"}},
		"no mapping":      {[]string{address, file("text.yml", "hunter2")}, []string{"text.yml:1: "}},
		"two secrets":     {[]string{address, file("two.yml", "basic_auth: {username: reader, password: hunter2, password_file: a}\n")}, []string{"two.yml:1: http_config: at most one of"}},
		"lost password":   {[]string{address, file("lost.yml", "basic_auth: {username: hunter2, password_file: none}\n")}, []string{"lost.yml: basic_auth.password_file: no such file"}},
		"no certificate":  {[]string{address, file("ca.yml", "tls_config: {ca: hunter2}\n")}, []string{"ca.yml: tls_config: ca"}},
		"lost CA":         {[]string{address, file("lostca.yml", "tls_config: {ca_file: none}\n")}, []string{"lostca.yml: tls_config.ca_file: no such file"}},
		"half of a pair":  {[]string{address, file("half.yml", "tls_config: {cert_file: half.yml}\n")}, []string{"half.yml: tls_config: "}},
		"second document": {[]string{address, file("second.yml", "{}\n---\n{}\n")}, []string{"second.yml:"}},
	} {
		for _, check := range [][]string{nil, {"--config.check"}} {
			args := append(append([]string{"serve"}, recordedArgs(t, tt.args...)...), check...)
			status, _, stderr := runCommandLine(args...)
			if status != 1 || strings.Contains(stderr, "hunter2") || strings.Count(stderr, "\n") > 1 {
				t.Errorf("%s: exit status %d: %s", name, status, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%s: %q is missing in: %s", name, want, stderr)
				}
			}
		}
	}
	good := file("good.yml", "basic_auth: {username: reader, password: hunter2}\n")
	if status, stdout, stderr := runCommandLine(append([]string{"serve", "--config.check", address, good}, recordedArgs(t)...)...); status != 0 || !strings.Contains(stdout, "is good") {
		t.Errorf("a good one: exit status %d: %s", status, stderr)
	}
}

// TestPrometheusWithCertificatesAndAPassword has a Prometheus that wants to see a
// certificate and a password, both from files beside the one of the flag.
func TestPrometheusWithCertificatesAndAPassword(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	certificate(t, path("ca.pem"), path("server.key"))
	clients := certificate(t, path("client.pem"), path("client.key"))
	writeFile(t, path("password"), "hunter2\n")
	pair, err := tls.LoadX509KeyPair(path("ca.pem"), path("server.key"))
	must(t, err)
	prometheus := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "reader" || password != "hunter2" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/query_range") {
			fmt.Fprint(w, `{"status":"success","data":{"resultType":"matrix","result":[]}}`)
			return
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"btrfs:pool_days_to_full"},"value":[%d,"12.5"]}]}}`, time.Now().Unix())
	}))
	prometheus.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	prometheus.Config.ErrorLog = stdlog.New(io.Discard, "", 0) // of handshakes that are refused
	prometheus.StartTLS()
	defer prometheus.Close()

	start := func(name, settings string) *process {
		writeFile(t, path(name), settings)
		return startServe(t, 1, []string{
			"--read-only", recordedPools, "--web.listen-address=127.0.0.1:0",
			"--prometheus.url=" + prometheus.URL, "--prometheus.http-config=" + path(name),
		})
	}
	forecast := func(p *process) string {
		_, body := p.do("GET", "/api/v1/pools/attic/capacity")
		return body
	}
	const certificates = "tls_config: {ca_file: ca.pem, cert_file: client.pem, key_file: client.key}\n"
	p := start("good.yml", certificates+"basic_auth: {username: reader, password_file: password}\n")
	eventually(t, "the forecast is that of Prometheus", func() bool {
		return strings.Contains(forecast(p), `"days_to_full":12.5`)
	})
	for name, settings := range map[string]string{
		"nobody.yml":    certificates,
		"stranger.yml":  "tls_config: {ca_file: ca.pem}\nbasic_auth: {username: reader, password: hunter2}\n",
		"credulous.yml": "tls_config: {cert_file: client.pem, key_file: client.key}\nbasic_auth: {username: reader, password: hunter2}\n",
	} {
		p := start(name, settings)
		eventually(t, name+": it is said that there is no answer", func() bool {
			return !strings.Contains(forecast(p), `"forecast"`) && strings.Contains(p.logged(), "Prometheus does not answer")
		})
		if strings.Contains(p.logged(), "hunter2") {
			t.Errorf("%s: a password is in the log:\n%s", name, p.logged())
		}
	}
}

// TestRotatedFilesAreReadAgain gives the daemon's client other certificates and
// another password in the files that it knows, as a renewal does.
func TestRotatedFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	type wanted struct {
		pair     tls.Certificate
		clients  *x509.CertPool
		password string
	}
	var now atomic.Pointer[wanted]
	rotate := func(to string) {
		certificate(t, path("ca.pem"), path("server.key"))
		clients := certificate(t, path("client.pem"), path("client.key"))
		writeFile(t, path("password"), to+"\n")
		pair, err := tls.LoadX509KeyPair(path("ca.pem"), path("server.key"))
		must(t, err)
		now.Store(&wanted{pair, clients, to})
	}
	rotate("first")
	prometheus := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != now.Load().password {
			http.Error(w, "who are you?", http.StatusUnauthorized)
		}
	}))
	prometheus.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		w := now.Load()
		return &tls.Config{Certificates: []tls.Certificate{w.pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.clients}, nil
	}}
	prometheus.StartTLS()
	defer prometheus.Close()
	writeFile(t, path("http.yml"), "tls_config: {ca_file: ca.pem, cert_file: client.pem, key_file: client.key}\nbasic_auth: {username: reader, password_file: password}\n")
	server, err := (&serveCommand{prometheusURL: prometheus.URL, prometheusHTTP: path("http.yml")}).prometheusServer()
	must(t, err)
	ask := func(when string) {
		t.Helper()
		response, err := server.client.Get(prometheus.URL)
		must(t, err)
		must(t, response.Body.Close())
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s it answers %s", when, response.Status)
		}
	}
	ask("at first")
	// A connection lives by what it was made with.
	prometheus.CloseClientConnections()
	rotate("second")
	ask("after a renewal")
}

// Nobody looks, so that nothing is asked of that address.
func TestPasswordForPrometheusInTheClearIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.yml")
	writeFile(t, path, "basic_auth: {username: reader, password: hunter2}\n")
	p := startServe(t, 1, recordedArgs(t, "--prometheus.url=http://192.0.2.1:9090", "--prometheus.http-config="+path))
	eventually(t, "it is said", func() bool { return strings.Contains(p.logged(), "unencrypted; use https") })
	if strings.Contains(p.logged(), "hunter2") {
		t.Errorf("a password is in the log:\n%s", p.logged())
	}
}
