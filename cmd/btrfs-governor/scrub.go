package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/go-kit/log"
	"golang.org/x/term"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// Exit statuses of commands that show a scrub.
const (
	exitCorrected     = 3 // errors were found, and all of them corrected
	exitUncorrectable = 4
)

// exitStatus is an outcome that is no error of the program.
type exitStatus int

// Error implements error.
func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// scrubCommand is one of the commands below `btrfs-governor scrub`.
type scrubCommand struct {
	name, verb string
	socket     string
	pool       string
	output     string
	dryRun     bool
	follow     bool
	foreground bool
	stateDir   string
	// Of start: what is asked for, as the API takes it.
	mode, limit, notBefore, deadline string
	readOnly                         bool
}

// newScrubCommands adds `scrub start` and its like.
func newScrubCommands(app *kingpin.Application) []*scrubCommand {
	group := app.Command("scrub", "Scrub pools, and look at their scrubs.")
	var all []*scrubCommand
	for _, verb := range []struct{ name, help string }{
		{"start", "Start a scrub. It gives way to others unless told otherwise."},
		{"pause", "Pause the scrub at its checkpoint."},
		{"resume", "Go on with a paused scrub."},
		{"cancel", "End the scrub."},
		{"status", "Show the scrub of a pool, the running one or the last."},
	} {
		cmd := group.Command(verb.name, verb.help)
		c := &scrubCommand{name: cmd.FullCommand(), verb: verb.name}
		cmd.Arg("pool", "UUID, label, beginning of the UUID, or a path on the pool; may be left out if there is one pool.").StringVar(&c.pool)
		cmd.Flag("pool", "The same.").StringVar(&c.pool)
		cmd.Flag("api.socket", "Unix socket of the daemon.").Default(defaultSocket).StringVar(&c.socket)
		cmd.Flag("output", "table or json.").Default("table").EnumVar(&c.output, "table", "json")
		if verb.name != "status" {
			cmd.Flag("dry-run", "Say what would be done, and do nothing.").BoolVar(&c.dryRun)
		}
		if verb.name == "start" || verb.name == "status" {
			cmd.Flag("follow", "Show the scrub until it ends.").Short('f').BoolVar(&c.follow)
		}
		if verb.name == "start" {
			cmd.Flag("mode", "auto gives way to others, full does not.").Default("").EnumVar(&c.mode, "", "auto", "full", "limit")
			cmd.Flag("limit", "Go at this rate on each device, such as 50MB a second.").StringVar(&c.limit)
			cmd.Flag("read-only", "Repair nothing.").BoolVar(&c.readOnly)
			cmd.Flag("not-before", "Begin then: a time (RFC 3339) or a duration from now.").StringVar(&c.notBefore)
			cmd.Flag("deadline", "Be done by then: a time (RFC 3339) or a duration from now.").StringVar(&c.deadline)
			cmd.Flag("foreground", "Scrub in this process, without the daemon.").BoolVar(&c.foreground)
			cmd.Flag("state.dir", "With --foreground: where the checkpoint is kept.").Default("/var/lib/btrfs-governor").StringVar(&c.stateDir)
		}
		all = append(all, c)
	}
	return all
}

func (c *scrubCommand) parameters() url.Values {
	v := url.Values{}
	for name, value := range map[string]string{"mode": c.mode, "limit": c.limit, "not_before": c.notBefore, "deadline": c.deadline} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if c.readOnly {
		v.Set("read_only", "true")
	}
	if c.dryRun {
		v.Set("dry_run", "true")
	}
	return v
}

func (c *scrubCommand) run(ctx context.Context, stdout, stderr io.Writer) error {
	if c.foreground {
		return c.runForeground(ctx, stdout, stderr)
	}
	daemon := newClient(c.socket)
	pool, err := daemon.findPool(ctx, c.pool)
	if err != nil {
		return err
	}
	if c.verb == "status" {
		return c.show(ctx, stdout, func() (scrub.Status, error) { return daemon.scrubStatus(ctx, pool) })
	}
	method, path := http.MethodPost, scrubPath(pool, "")
	switch c.verb {
	case "pause", "resume":
		path = scrubPath(pool, "/"+c.verb)
	case "cancel":
		method = http.MethodDelete
	}
	if c.dryRun {
		var plan scrub.Plan
		if err := daemon.do(ctx, method, path, c.parameters(), &plan); err != nil {
			return err
		}
		return c.showPlan(stdout, &plan)
	}
	if c.verb != "start" {
		var s scrub.Status
		if err := daemon.do(ctx, method, path, c.parameters(), &s); err != nil {
			return err
		}
		if c.output == "json" {
			return json.NewEncoder(stdout).Encode(s)
		}
		done := map[string]string{"pause": "is being paused", "resume": "goes on", "cancel": "is being cancelled"}[c.verb]
		fmt.Fprintf(stdout, "The scrub of pool %s %s.\n", s.Pool, done)
		return nil
	}
	var j job.Job
	if err := daemon.do(ctx, method, path, c.parameters(), &j); err != nil {
		return err
	}
	if !c.follow {
		if c.output == "json" {
			return json.NewEncoder(stdout).Encode(j)
		}
		fmt.Fprintf(stdout, "The scrub of pool %s is job %s. Watch it with: btrfs-governor scrub status --follow %s\n", j.Pool, j.ID, j.Pool)
		return nil
	}
	return c.show(ctx, stdout, func() (scrub.Status, error) { return daemon.scrubStatus(ctx, pool) })
}

func (c *scrubCommand) showPlan(stdout io.Writer, plan *scrub.Plan) error {
	if c.output == "json" {
		return json.NewEncoder(stdout).Encode(plan)
	}
	fmt.Fprintf(stdout, "Of pool %s this would:\n", plan.Pool)
	for _, w := range plan.Would {
		fmt.Fprintf(stdout, "  %s\n", w)
	}
	return nil
}

// Timing of what follows a scrub.
const (
	followInterval = 500 * time.Millisecond
	plainInterval  = 10 * time.Second // between lines where nothing changed
)

// show shows a scrub, with --follow until it ends, and returns what its outcome
// is as an exit status.
func (c *scrubCommand) show(ctx context.Context, stdout io.Writer, get func() (scrub.Status, error)) error {
	s, err := get()
	if err != nil {
		return err
	}
	if !c.follow {
		if c.output == "json" {
			if err := json.NewEncoder(stdout).Encode(s); err != nil {
				return err
			}
		} else {
			fmt.Fprint(stdout, renderScrub(&s, time.Now(), terminalWidth(stdout)))
		}
		return outcome(&s)
	}
	v := &view{out: stdout, width: terminalWidth(stdout), json: c.output == "json"}
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for {
		v.update(&s, time.Now())
		if !s.State.Active() {
			v.end(&s, time.Now())
			return outcome(&s)
		}
		select {
		case <-ctx.Done():
			if !c.foreground && c.output != "json" {
				fmt.Fprintln(stdout, "The scrub goes on without you; end it with: btrfs-governor scrub cancel "+s.Pool.String())
			}
			return nil
		case <-ticker.C:
		}
		next, err := get()
		if err != nil {
			if ctx.Err() != nil {
				continue
			}
			return err
		}
		s = next
	}
}

// outcome is the exit status of a command that showed a scrub; nil is 0.
func outcome(s *scrub.Status) error {
	c := s.Counters()
	switch {
	case c.UncorrectableErrors > 0:
		return exitStatus(exitUncorrectable)
	case s.State == scrub.Failed:
		return exitStatus(1)
	// Superblocks are repaired without being counted as corrected.
	case c.CorrectedErrors < c.Errors()-c.SuperErrors, s.Options.ReadOnly && c.Errors() > 0:
		return exitStatus(exitUncorrectable)
	case c.Errors() > 0:
		return exitStatus(exitCorrected)
	}
	return nil
}

// view shows how a scrub goes on: in place on a terminal, else as lines.
type view struct {
	out   io.Writer
	width int // 0: no terminal
	json  bool

	lines  int // on the screen
	last   string
	lastAt time.Time
}

func (v *view) update(s *scrub.Status, now time.Time) {
	switch {
	case v.json:
		_ = json.NewEncoder(v.out).Encode(s) // who closed the pipe reads no more
	case v.width > 0:
		text := renderScrub(s, now, v.width)
		if v.lines > 0 {
			fmt.Fprintf(v.out, "\x1b[%dA\x1b[J", v.lines) // up, and clear to the end
		}
		fmt.Fprint(v.out, text)
		v.lines = strings.Count(text, "\n")
	default:
		state := string(s.State) + s.Reason
		if state == v.last && now.Sub(v.lastAt) < plainInterval {
			return
		}
		v.last, v.lastAt = state, now
		fmt.Fprintln(v.out, plainLine(s))
	}
}

// end shows the end of a scrub in full where lines were shown before.
func (v *view) end(s *scrub.Status, now time.Time) {
	if !v.json && v.width == 0 {
		fmt.Fprint(v.out, renderScrub(s, now, 0))
	}
}

// terminalWidth is the width of a terminal, 0 for what is none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return max(width, 20)
}

// runForeground scrubs in this process.
func (c *scrubCommand) runForeground(ctx context.Context, stdout, stderr io.Writer) error {
	o, err := httpapi.ParseScrubOptions(c.parameters(), time.Now())
	if err != nil {
		return err
	}
	client := btrfs.NewClient(btrfs.DefaultPaths())
	uuid, err := findMounted(client, c.pool)
	if err != nil {
		return err
	}
	if err := checkStateDir(c.stateDir); err != nil {
		return err
	}
	release, err := lockStateDir(ctx, c.stateDir)
	if err != nil {
		return err
	}
	defer release()
	dir := state.NewDir(c.stateDir)
	jobs, err := job.Open(dir, keptJobs)
	if err != nil && !errors.Is(err, state.ErrDamaged) {
		return err
	}
	logger := log.NewNopLogger()
	if terminalWidth(stdout) == 0 {
		logger = log.NewLogfmtLogger(log.NewSyncWriter(stderr))
	}
	runner, err := scrub.New(scrub.Config{Logger: logger, Client: client, Paths: btrfs.DefaultPaths(), State: dir, Jobs: jobs, Only: uuid})
	if err != nil {
		return err
	}
	if c.dryRun {
		plan, err := runner.Plan(uuid, o)
		if err != nil {
			return err
		}
		return c.showPlan(stdout, plan)
	}
	runCtx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(ended)
		_ = runner.RunReady(runCtx, func() { close(started) }) // returns no error
	}()
	defer func() {
		stop()
		<-ended
	}()
	<-started
	if _, err := runner.Start(uuid, o, "command line"); err != nil {
		return err
	}
	c.follow = true
	err = c.show(ctx, stdout, func() (scrub.Status, error) { return runner.Status(uuid) })
	if ctx.Err() != nil {
		fmt.Fprintf(stderr, "Stopped at the checkpoint. The daemon goes on from there at its next start, with the same --state.dir (%s).\n", c.stateDir)
	}
	return err
}

// findMounted finds a mounted pool without the daemon.
func findMounted(client *btrfs.Client, name string) (btrfs.UUID, error) {
	if strings.Contains(name, "/") || name == "." || name == ".." {
		text, err := uuidOfPath(name)
		if err != nil {
			return btrfs.UUID{}, err
		}
		return btrfs.ParseUUID(text)
	}
	mounts, err := client.Mounts()
	var found []btrfs.UUID
	var names []string
	for i := range mounts {
		m := &mounts[i]
		if m.UUID.IsZero() || len(m.Points) == 0 {
			continue
		}
		label := client.Label(m.UUID)
		names = append(names, strings.TrimSpace(m.UUID.String()+" "+label))
		if name == "" || name == label || strings.HasPrefix(m.UUID.String(), strings.ToLower(name)) {
			found = append(found, m.UUID)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if err != nil && len(mounts) == 0 {
		return btrfs.UUID{}, err
	}
	return btrfs.UUID{}, whichPool(names)
}
