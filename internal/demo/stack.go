//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/term"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/scrub/statusfile"
)

// Values of -stack.
const (
	stackAuto = "auto"
	stackOn   = "on"
	stackOff  = "off"
)

// stack is Prometheus, Alertmanager, a btrfs-governor that takes commands, and a
// phone.
type stack struct {
	prometheusPath, alertmanagerPath string

	dir        string
	pool       string // UUID of the pool that it scrubs
	firstScrub bool   // of this machine: nobody has made the directory of the status files
	governor   *process
	prometheus *process
	alerts     *process
	phone      *phone
}

// findStack finds the programs, and offers to download them into dir. It returns nil
// where the demonstration goes on without.
func findStack(ctx context.Context, o options, dir string, in *os.File, out io.Writer) (*stack, error) {
	if o.stack == stackOff {
		return nil, nil //nolint:nilnil // there is none
	}
	s := &stack{dir: dir}
	err := s.find("")
	if err != nil && o.stack == stackAuto && offerStack(ctx, in, out) {
		fmt.Fprintln(out, "Downloading them.")
		if err = downloadStack(ctx, dir); err == nil {
			err = s.find(filepath.Join(dir, "usr/bin"))
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(out, "That failed: %v\n", err)
		}
	}
	switch {
	case err == nil:
		return s, nil
	case o.stack == stackOn:
		return nil, fmt.Errorf("start Prometheus and Alertmanager: %w; install the packages prometheus and prometheus-alertmanager", err)
	}
	fmt.Fprintf(out, "With Prometheus and Alertmanager installed (apt-get install prometheus prometheus-alertmanager)\nthe demonstration also shows how an error reaches a phone.\n\n")
	return nil, nil //nolint:nilnil // there is none
}

// find finds the programs in a directory, or in those of PATH.
func (s *stack) find(dir string) (err error) {
	if s.prometheusPath, err = exec.LookPath(filepath.Join(dir, "prometheus")); err != nil {
		return err
	}
	// Debian's name, and that of everybody else.
	if s.alertmanagerPath, err = exec.LookPath(filepath.Join(dir, "prometheus-alertmanager")); err != nil {
		s.alertmanagerPath, err = exec.LookPath(filepath.Join(dir, "alertmanager"))
	}
	return err
}

// offerStack asks whether to download the programs.
func offerStack(ctx context.Context, in *os.File, out io.Writer) bool {
	if _, err := exec.LookPath("apt-get"); err != nil || !term.IsTerminal(int(in.Fd())) {
		return false
	}
	return ask(ctx, in, out, "Prometheus and Alertmanager would show how an error reaches a phone. Download\ntheir Debian packages (30 MB), to be used from here and not installed?")
}

// downloadStack downloads the packages and unpacks them into a directory. Installed,
// they would start daemons on the usual ports, now and with the machine. The
// programs need nothing but the C library.
func downloadStack(ctx context.Context, dir string) error {
	for _, args := range [][]string{{"update", "-qq"}, {"download", "-qq", "prometheus", "prometheus-alertmanager"}} {
		if err := aptGet(ctx, dir, args...); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range packages {
		if _, err := runProgram(ctx, "dpkg-deb", "--extract", file, dir); err != nil {
			return err
		}
	}
	return nil
}

// start starts all, and has an error reach the phone.
func (s *stack) start(ctx context.Context, rig *btrfstest.Rig, o options, out io.Writer) error {
	fmt.Fprintln(out, "How an error reaches a phone: Prometheus and Alertmanager start, and a small pool is made.")
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	if err != nil {
		return err
	}
	_, err = os.Stat(scrub.DefaultStatusDir)
	s.pool, s.firstScrub = pool.UUID, errors.Is(err, os.ErrNotExist)
	if err := pool.WriteFile("film.mkv", 64*mib, rand.New(rand.NewPCG(4, 2))); err != nil {
		return err
	}
	if s.phone, err = newPhone(ctx, out); err != nil {
		return err
	}
	if err := s.startPrograms(ctx, o); err != nil {
		return err
	}
	fmt.Fprintln(out, "One copy of a block of film.mkv is overwritten, behind the kernel's back.")
	if err := pool.CorruptFile("film.mkv", 8*mib, 0); err != nil {
		return err
	}
	if err := pool.DropCaches(); err != nil {
		return err
	}
	fmt.Fprintf(out, "A scrub is started:\n\n  curl -X POST --unix-socket %s http://localhost%s\n\n", s.socket(), s.scrubPath())
	found, err := s.scrub(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "It says: %s.\n", found)
	fmt.Fprintln(out, "Prometheus scrapes that, a rule fires, Alertmanager sends it, and btrfs-governor passes it on:")
	return s.phone.waitFor(ctx, "BtrfsScrubErrorsCorrected")
}

// startPrograms starts them on free ports, each with a configuration that knows
// the others.
func (s *stack) startPrograms(ctx context.Context, o options) error {
	addresses, err := freeAddresses(ctx, 3)
	if err != nil {
		return err
	}
	governor, prometheus, alertmanager := addresses[0], addresses[1], addresses[2]
	rules, err := alerts.Files.ReadFile(alerts.FileName)
	if err != nil {
		return err
	}
	config, err := onlyPool(s.pool)
	if err != nil {
		return err
	}
	stateDir := filepath.Join(s.dir, "state")
	if err := os.Mkdir(stateDir, 0o700); err != nil {
		return err
	}
	files := map[string]string{
		"config.yml": config + fmt.Sprintf(`
notify:
  receivers:
    - {name: phone, type: ntfy, url: "http://%s", topic: attic, token: "%s"}
`, s.phone.address, s.phone.token),
		alerts.FileName: string(rules),
		"prometheus.yml": fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%s]
alerting: {alertmanagers: [{static_configs: [{targets: ['%s']}]}]}
scrape_configs:
  - {job_name: btrfs, static_configs: [{targets: ['%s']}]}
`, alerts.FileName, alertmanager, governor),
		"alertmanager.yml": fmt.Sprintf(`
route: {receiver: phone, group_by: [instance, uuid], group_wait: 1s, group_interval: 5s}
receivers:
  - name: phone
    webhook_configs:
      - url: http://%s/api/v1/notify/phone
        http_config: {authorization: {credentials_file: %s}}
`, governor, filepath.Join(stateDir, "token")),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	in := func(name string) string { return filepath.Join(s.dir, name) }
	s.governor, err = startProcess(ctx, "btrfs-governor", governor, o.governor, "serve", "--web.listen-address="+governor,
		"--config.file="+in("config.yml"), "--state.dir="+stateDir, "--api.socket="+s.socket(), "--log.level=warn")
	if err != nil {
		return err
	}
	s.alerts, err = startProcess(ctx, "Alertmanager", alertmanager, s.alertmanagerPath, "--web.listen-address="+alertmanager, "--cluster.listen-address=",
		"--config.file="+in("alertmanager.yml"), "--storage.path="+in("alertmanager"), "--log.level=warn")
	if err != nil {
		return err
	}
	s.prometheus, err = startProcess(ctx, "Prometheus", prometheus, s.prometheusPath, "--web.listen-address="+prometheus,
		"--config.file="+in("prometheus.yml"), "--storage.tsdb.path="+in("prometheus"), "--log.level=warn")
	return err
}

// freeAddresses returns different addresses of loopback at which nobody listens.
func freeAddresses(ctx context.Context, n int) (addresses []string, err error) {
	for range n {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:gocritic // when all are chosen, so that they differ
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// socket takes commands of who made it, without a token.
func (s *stack) socket() string { return filepath.Join(s.dir, "api.sock") }

func (s *stack) scrubPath() string { return "/api/v1/pools/" + s.pool + "/scrub" }

// scrub scrubs the pool and returns what the scrub said at its end.
func (s *stack) scrub(ctx context.Context) (reason string, err error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket())
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ask := func(method string) (state, reason string, err error) {
		r, err := http.NewRequestWithContext(ctx, method, "http://localhost"+s.scrubPath(), http.NoBody)
		if err != nil {
			return "", "", err
		}
		answer, err := client.Do(r)
		if err != nil {
			return "", "", err
		}
		defer answer.Body.Close()
		var said struct{ State, Reason, Detail string }
		if err := json.NewDecoder(answer.Body).Decode(&said); err != nil {
			return "", "", err
		}
		if answer.StatusCode > 299 {
			return "", "", errors.New(said.Detail)
		}
		return said.State, said.Reason, nil
	}
	if _, _, err := ask(http.MethodPost); err != nil {
		return "", fmt.Errorf("start a scrub: %w", err)
	}
	for {
		state, reason, err := ask(http.MethodGet)
		if err != nil || state == "finished" {
			return reason, err
		}
		if state == "failed" || state == "cancelled" {
			return "", fmt.Errorf("the scrub is %s: %s", state, reason)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// printURLs shows where to look.
func (s *stack) printURLs(out io.Writer) {
	// Debian's have no pages, or need more packages for them.
	fmt.Fprintf(out, "Alerts    curl -s http://%s/api/v1/alerts\n", s.prometheus.address)
	fmt.Fprintf(out, "Notified  curl -s http://%s/api/v2/alerts\n", s.alerts.address)
}

// end ends what was started, in any state. What is in its directory goes with the
// rig.
func (s *stack) end() error {
	for _, p := range []*process{s.prometheus, s.alerts, s.governor} {
		if p != nil {
			p.end()
		}
	}
	if s.phone != nil {
		s.phone.close()
	}
	if s.pool == "" {
		return nil
	}
	return removeStatus(scrub.DefaultStatusDir, s.pool, s.firstScrub)
}

// removeStatus removes what the daemon has written for `btrfs scrub status`, of one
// pool, and the directory too if it was not there before.
func removeStatus(dir, pool string, madeDir bool) error {
	uuid, err := btrfs.ParseUUID(pool)
	if err != nil {
		return err
	}
	// The socket and the temporary file are there only if the daemon was killed.
	name := statusfile.Path(dir, uuid)
	for _, path := range []string{name, name + "_tmp", statusfile.SocketPath(dir, uuid)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if madeDir {
		_ = os.Remove(dir) // it stays if others use it by now
	}
	return nil
}
