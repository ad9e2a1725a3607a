package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/go-kit/log"
	"golang.org/x/term"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/scrub/statusfile"
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
	defer daemon.http.CloseIdleConnections()
	pool, err := daemon.findPool(ctx, c.pool)
	if c.verb == "status" {
		var s scrub.Status
		if err == nil {
			s, err = daemon.scrubStatus(ctx, pool)
		}
		if errors.Is(err, errNoDaemon) && !c.follow {
			return c.showRecord(stdout, stderr, err)
		}
		if err != nil {
			return err
		}
		if !c.follow {
			return c.showOnce(stdout, &s)
		}
		// By the UUID it is found also when it is unmounted meanwhile.
		uuid := s.Pool.String()
		return c.followDaemon(ctx, uuid, stdout, func() (scrub.Status, error) { return daemon.scrubStatus(ctx, uuid) })
	}
	if err != nil {
		return c.withRemedy(err)
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
		return c.withRemedy(err)
	}
	if !c.follow {
		if c.output == "json" {
			return json.NewEncoder(stdout).Encode(j)
		}
		fmt.Fprintf(stdout, "The scrub of pool %s is job %s. Watch it with: btrfs-governor scrub status --follow %s\n", j.Pool, j.ID, j.Pool)
		return nil
	}
	return c.followJob(ctx, daemon, &j, stdout)
}

// withRemedy says what else there is where no daemon runs.
func (c *scrubCommand) withRemedy(err error) error {
	if c.verb == "start" && errors.Is(err, errNoDaemon) {
		return fmt.Errorf("%w; --foreground scrubs without it", err)
	}
	return err
}

// showRecord shows what the status file of btrfs-progs says, which every
// scrub keeps.
func (c *scrubCommand) showRecord(stdout, stderr io.Writer, noDaemon error) error {
	uuid, err := findMounted(btrfs.NewClient(btrfs.DefaultPaths()), c.pool)
	if err != nil {
		return fmt.Errorf("%w; and without it: %w", noDaemon, err)
	}
	devices, err := statusfile.Read(scrub.DefaultStatusDir, uuid)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; and %s records no scrub of pool %s", noDaemon, scrub.DefaultStatusDir, uuid)
	}
	if err != nil {
		return fmt.Errorf("%w; and without it: %w", noDaemon, err)
	}
	fmt.Fprintf(stderr, "The daemon does not run; %s says:\n", statusfile.Path(scrub.DefaultStatusDir, uuid))
	s := recordedScrub(uuid, devices)
	return c.showOnce(stdout, &s)
}

// recordedScrub is the scrub that a status file tells of.
func recordedScrub(pool btrfs.UUID, devices []statusfile.Device) scrub.Status {
	if len(devices) == 0 {
		return scrub.Status{Pool: pool, State: scrub.Idle}
	}
	s := scrub.Status{Pool: pool, State: scrub.Finished, Devices: make([]scrub.DeviceStatus, 0, len(devices))}
	for i := range devices {
		d := &devices[i]
		s.Devices = append(s.Devices, scrub.DeviceStatus{DevID: d.DevID, Done: d.Finished, Started: d.Started, Counters: d.Counters})
		if s.Started.IsZero() || d.Started.Before(s.Started) {
			s.Started = d.Started
		}
		s.Duration = max(s.Duration, d.Duration)
		switch {
		case d.Canceled:
			s.State = scrub.Cancelled
		case !d.Finished && s.State != scrub.Cancelled:
			s.State, s.Reason = scrub.Waiting, "It has not ended: another program runs it, or it goes on when the daemon runs"
		}
	}
	if s.State == scrub.Cancelled {
		s.Reason = ""
	}
	if s.State == scrub.Finished {
		s.Progress = 1
	}
	return s
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

// followInterval is how often a scrub that is followed is looked at.
const followInterval = 500 * time.Millisecond

// daemonPatience is how long a daemon that was there may be away: it is being
// restarted, and goes on with the scrub then.
const daemonPatience = time.Minute

// showOnce shows a scrub, and returns what its outcome is as an exit status.
func (c *scrubCommand) showOnce(stdout io.Writer, s *scrub.Status) error {
	if c.output == "json" {
		if err := json.NewEncoder(stdout).Encode(s); err != nil {
			return err
		}
		return outcome(s)
	}
	width, _ := terminalSize(stdout)
	fmt.Fprint(stdout, renderScrub(s, time.Now(), width))
	return outcome(s)
}

// followScrub shows a scrub until it ends, and returns what its outcome is as an
// exit status, or errDetached.
func (c *scrubCommand) followScrub(ctx context.Context, stdout io.Writer, get func() (scrub.Status, error)) error {
	s, err := get()
	if err != nil {
		return err
	}
	size := func() (int, int) { return terminalSize(stdout) }
	v := &view{out: stdout, size: size, json: c.output == "json"}
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	lastAnswer := time.Now()
	for {
		v.update(&s, time.Now())
		if !s.State.Active() {
			v.end(&s, time.Now())
			return outcome(&s)
		}
		for {
			select {
			case <-ctx.Done():
				return errDetached
			case <-ticker.C:
			}
			next, err := get()
			if err == nil {
				s, lastAnswer = next, time.Now()
				break
			}
			if ctx.Err() != nil {
				return errDetached
			}
			if !errors.Is(err, errNoDaemon) || time.Since(lastAnswer) > daemonPatience {
				return err
			}
		}
	}
}

// errDetached is returned where a scrub was followed, and has not ended.
var errDetached = errors.New("no longer following the scrub")

// followJob follows the scrub of a job: also to its end where another one of the
// pool has begun since.
func (c *scrubCommand) followJob(ctx context.Context, daemon *client, j *job.Job, stdout io.Writer) error {
	return c.followDaemon(ctx, j.Pool.String(), stdout, func() (scrub.Status, error) {
		s, err := daemon.scrubStatus(ctx, j.Pool.String())
		if err != nil || s.JobID == j.ID {
			return s, err
		}
		var ended job.Job
		if err := daemon.do(ctx, http.MethodGet, "/api/v1/jobs/"+url.PathEscape(j.ID), nil, &ended); err != nil {
			return s, err
		}
		if !ended.State.Ended() {
			return s, nil
		}
		var result scrub.Status
		if err := json.Unmarshal(ended.Result, &result); err != nil {
			return s, fmt.Errorf("job %s is %s: %s; the pool has another scrub now", j.ID, ended.State, ended.Reason)
		}
		return result, nil
	})
}

// followDaemon is followScrub; whoever detaches is told that the scrub goes on.
func (c *scrubCommand) followDaemon(ctx context.Context, pool string, stdout io.Writer, get func() (scrub.Status, error)) error {
	err := c.followScrub(ctx, stdout, get)
	if errors.Is(err, errDetached) {
		return fmt.Errorf("%w, which goes on; see it with `%s scrub status --follow %[3]s`, end it with `%[2]s scrub cancel %[3]s`", err, programName, pool)
	}
	return err
}

// outcome is the exit status of a command that showed a scrub; nil is 0.
func outcome(s *scrub.Status) error {
	c := s.Counters()
	switch {
	case c.UncorrectableErrors > 0:
		return exitStatus(exitUncorrectable)
	case s.State == scrub.Failed, s.State == scrub.Cancelled:
		return exitStatus(1)
	// Superblocks are repaired without being counted as corrected.
	case c.CorrectedErrors < c.Errors()-c.SuperErrors, s.Options.ReadOnly && c.Errors() > 0:
		return exitStatus(exitUncorrectable)
	case c.Errors() > 0:
		return exitStatus(exitCorrected)
	}
	return nil
}

// terminalSize returns the size of a terminal in characters, 0 for what is
// none.
func terminalSize(w io.Writer) (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	fd := int(f.Fd())
	if !term.IsTerminal(fd) {
		return 0, 0
	}
	width, height, err := term.GetSize(fd)
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24 // a serial console does not know its size
	}
	return max(width, 20), height
}

// runForeground scrubs in this process.
func (c *scrubCommand) runForeground(ctx context.Context, stdout, stderr io.Writer) error {
	o, err := httpapi.ParseScrubOptions(c.parameters(), time.Now())
	if err != nil {
		return err
	}
	// The end of the terminal is no reason to die without a checkpoint.
	ctx, stopSignals := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stopSignals()
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
	if width, _ := terminalSize(stdout); width == 0 {
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
	// One that was stopped before is under way again: that is the one to follow.
	if _, err := runner.Start(uuid, o, fmt.Sprintf("command line, uid %d", os.Getuid())); errors.Is(err, scrub.ErrRunning) {
		fmt.Fprintln(stderr, "Going on with the scrub that had begun, as it was asked for then.")
	} else if err != nil {
		return err
	}
	err = c.followScrub(ctx, stdout, func() (scrub.Status, error) { return runner.Status(uuid) })
	if errors.Is(err, errDetached) {
		return fmt.Errorf("stopped at the checkpoint: the same command goes on from there, and so does the daemon at its next start with --state.dir=%s", c.stateDir)
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
	var labelled, prefixed []btrfs.UUID
	var names []string
	for i := range mounts {
		m := &mounts[i]
		if m.UUID.IsZero() || len(m.Points) == 0 {
			continue
		}
		label := client.Label(m.UUID)
		names = append(names, strings.TrimSpace(m.UUID.String()+" "+label))
		if name != "" && name == label {
			labelled = append(labelled, m.UUID)
		}
		if strings.HasPrefix(m.UUID.String(), strings.ToLower(name)) {
			prefixed = append(prefixed, m.UUID)
		}
	}
	// As the daemon has it: a label goes before the beginning of a UUID.
	found := prefixed
	if len(labelled) > 0 {
		found = labelled
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if err != nil && len(mounts) == 0 {
		return btrfs.UUID{}, err
	}
	return btrfs.UUID{}, whichPool(names)
}
