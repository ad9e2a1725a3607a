package notify_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/internal/notify"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// asDaemon makes the test binary a process that runs a Bridge, see daemon.
const asDaemon = "BTRFS_GOVERNOR_NOTIFY_TEST_DAEMON"

func TestMain(m *testing.M) {
	if settings := os.Getenv(asDaemon); settings != "" {
		if err := daemon(settings); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// daemonSettings are those of a daemon.
type daemonSettings struct {
	State string
	URLs  map[notify.Kind]string
	// Fill has it take all that its queue holds instead, see fill.
	Fill bool
}

// daemon runs a bridge until SIGTERM. It accepts the message whose number is on a
// line of its input for all receivers, and answers with the same line.
func daemon(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var settings daemonSettings
	if err := json.Unmarshal([]byte(text), &settings); err != nil {
		return err
	}
	b, err := notify.New(notify.Config{Logger: log.NewLogfmtLogger(os.Stderr), State: state.NewDir(settings.State)})
	if err != nil {
		return err
	}
	var receivers []notify.Receiver
	for kind, url := range settings.URLs {
		receivers = append(receivers, receiver(kind, string(kind), url))
	}
	if err := b.SetSettings(receivers); err != nil {
		return err
	}
	if settings.Fill {
		return errors.Join(fill(b, receivers), b.Close())
	}
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			return err
		}
		for _, r := range receivers {
			if _, err := b.Accept(r.Name, number(n)); err != nil {
				return err
			}
		}
		fmt.Println(n)
	}
	return errors.Join(<-done, b.Close())
}

// process is a daemon in a process of its own.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	log   strings.Builder
}

func spawn(t *testing.T, settings daemonSettings) *process {
	t.Helper()
	program, err := os.Executable()
	must(t, err)
	text, err := json.Marshal(settings)
	must(t, err)
	p := &process{t: t, cmd: exec.Command(program)}
	p.cmd.Env = append(os.Environ(), asDaemon+"="+string(text))
	p.cmd.Stderr = &p.log
	p.stdin, err = p.cmd.StdinPipe()
	must(t, err)
	stdout, err := p.cmd.StdoutPipe()
	must(t, err)
	p.lines = bufio.NewScanner(stdout)
	must(t, p.cmd.Start())
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	return p
}

// accept has a message accepted, and reports whether it was.
func (p *process) accept(n int) bool {
	_, err := fmt.Fprintln(p.stdin, n)
	return err == nil && p.lines.Scan() && p.lines.Text() == strconv.Itoa(n)
}

var numbered = regexp.MustCompile(`number (\d+)`)

// Whatever was accepted arrives, through any number of kills, and what arrives twice
// was under way at one of them: one of each receiver for each kill at most. Of ntfy
// nothing does, for that is asked.
func TestNothingIsLostAndNothingSentTwiceThroughKills(t *testing.T) {
	const kills = 12
	servers := make(map[notify.Kind]*server)
	settings := daemonSettings{State: t.TempDir(), URLs: make(map[notify.Kind]string)}
	for _, kind := range kinds {
		servers[kind] = serve(t, kind)
		settings.URLs[kind] = servers[kind].URL
		// The message is there a while before the answer.
		servers[kind].slow = 3 * time.Millisecond
	}
	rng := rand.New(rand.NewPCG(7, 3))
	next, killed := 0, 0
	for ; killed < kills; killed++ {
		p := spawn(t, settings)
		// As Alertmanager does, what was not answered is sent again.
		if !p.accept(next) {
			t.Fatalf("message %d was not accepted:\n%s", next, p.log.String())
		}
		kill := time.AfterFunc(time.Duration(rng.Int64N(int64(60*time.Millisecond))), func() { _ = p.cmd.Process.Kill() })
		for next++; p.accept(next); next++ {
		}
		kill.Stop()
		_ = p.cmd.Wait()
	}
	p := spawn(t, settings)
	for last := next + 20; next < last; next++ {
		if !p.accept(next) {
			t.Fatalf("message %d was not accepted:\n%s", next, p.log.String())
		}
	}
	arrived := func(s *server) map[int]int {
		times := make(map[int]int)
		for _, m := range s.all() {
			n, err := strconv.Atoi(numbered.FindStringSubmatch(m.Message)[1])
			must(t, err)
			times[n]++
		}
		return times
	}
	for kind, s := range servers {
		eventually(t, fmt.Sprintf("all %d arrive at %s", next, kind), func() bool { return len(arrived(s)) == next })
	}
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	must(t, p.stdin.Close())
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v:\n%s", err, p.log.String())
	}
	for kind, s := range servers {
		twice := 0
		for _, times := range arrived(s) { // one may be under way at several kills
			twice += times - 1
		}
		most := kills
		if kind == notify.Ntfy {
			most = 0
		}
		t.Logf("%s: %d messages, %d of them again, %d kills, %d looks", kind, next, twice, killed, s.looks)
		if twice > most {
			t.Errorf("%s got %d again, want %d at most", kind, twice, most)
		}
	}
}

// A stop with SIGTERM leaves no window.
func TestNothingIsSentTwiceThroughStops(t *testing.T) {
	s := serve(t, notify.Discord)
	s.slow = 3 * time.Millisecond
	settings := daemonSettings{State: t.TempDir(), URLs: map[notify.Kind]string{notify.Discord: s.URL}}
	next := 0
	for range 5 {
		p := spawn(t, settings)
		for last := next + 10; next < last; next++ {
			if !p.accept(next) {
				t.Fatalf("message %d was not accepted:\n%s", next, p.log.String())
			}
		}
		must(t, p.cmd.Process.Signal(syscall.SIGTERM))
		must(t, p.stdin.Close())
		if err := p.cmd.Wait(); err != nil {
			t.Fatalf("the daemon ended with %v:\n%s", err, p.log.String())
		}
	}
	b := open(t, settings.State, nil, s.receiver("discord")).start()
	eventually(t, "all arrive", func() bool { return s.idle(next) })
	b.stop()
	if n := len(s.all()); n != next {
		t.Errorf("%d arrived, want %d", n, next)
	}
}
