package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// snapshotCommand is one of the commands below `btrfs-governor snapshot`.
type snapshotCommand struct {
	name, verb string
	socket     string
	pool       string
	output     string
	dryRun     bool
	// Of create.
	subvolume      string
	subvolumeGiven bool
	pin            bool
	// Of delete.
	snapshot string
	// Of list.
	sizes, all bool
	// Of plan.
	days int
}

// newSnapshotCommands adds `snapshot create` and its like.
func newSnapshotCommands(app *kingpin.Application) []*snapshotCommand {
	group := app.Command("snapshot", "Take, list and prune snapshots.")
	var all []*snapshotCommand
	for _, verb := range []struct{ name, help string }{
		{"create", "Take snapshots of the configured subvolumes, or of one, and print where they are."},
		{"list", "List the snapshots, and why each is kept."},
		{"delete", "Delete a snapshot that btrfs-governor made."},
		{"prune", "Delete the snapshots that no rule keeps."},
		{"plan", "Foretell which snapshots there will be."},
	} {
		cmd := group.Command(verb.name, verb.help)
		c := &snapshotCommand{name: cmd.FullCommand(), verb: verb.name}
		if verb.name == "delete" {
			cmd.Arg("snapshot", "Name of the snapshot, as list shows it.").Required().StringVar(&c.snapshot)
		}
		cmd.Arg("pool", "UUID, label, beginning of the UUID, or a path on the pool; may be left out if there is one pool.").StringVar(&c.pool)
		cmd.Flag("pool", "The same.").StringVar(&c.pool)
		cmd.Flag("api.socket", "Unix socket of the daemon.").Default(defaultSocket).StringVar(&c.socket)
		cmd.Flag("output", "table or json.").Default("table").EnumVar(&c.output, "table", "json")
		switch verb.name {
		case "create":
			cmd.Flag("subvolume", "The subvolume, from the top of the pool, instead of all that are configured.").IsSetByUser(&c.subvolumeGiven).StringVar(&c.subvolume)
			cmd.Flag("pin", "Never prune it; delete it by name.").BoolVar(&c.pin)
		case "list":
			cmd.Flag("sizes", "Find out what deleting each would give back; that takes a while.").BoolVar(&c.sizes)
			cmd.Flag("all", "Also those that btrfs-governor did not make.").BoolVar(&c.all)
		case "plan":
			cmd.Flag("days", "How many days to look ahead.").Default("7").IntVar(&c.days)
		}
		if verb.name == "create" || verb.name == "delete" || verb.name == "prune" {
			cmd.Flag("dry-run", "Say what would be done, and do nothing.").BoolVar(&c.dryRun)
		}
		all = append(all, c)
	}
	return all
}

func (c *snapshotCommand) run(ctx context.Context, stdout, _ io.Writer) error {
	daemon := newClient(c.socket)
	defer daemon.http.CloseIdleConnections()
	// It waits for the daemon as long as that waits for a job.
	daemon.http.Timeout = jobTimeout
	pool, err := daemon.findPool(ctx, c.pool)
	if err != nil {
		return err
	}
	path := "/api/v1/pools/" + url.PathEscape(pool) + "/snapshots"
	switch c.verb {
	case "list":
		return c.list(ctx, daemon, path, stdout)
	case "plan":
		return c.plan(ctx, daemon, path, stdout)
	}
	method, parameters := http.MethodPost, url.Values{}
	switch c.verb {
	case "create":
		if c.subvolumeGiven {
			parameters.Set("subvolume", c.subvolume)
		}
		if c.pin {
			parameters.Set("pin", "true")
		}
	case "delete":
		method, path = http.MethodDelete, path+"/"+url.PathEscape(c.snapshot)
	case "prune":
		path += "/prune"
	}
	if c.dryRun {
		parameters.Set("dry_run", "true")
		var plan snapshot.Plan
		if err := daemon.do(ctx, method, path, parameters, &plan); err != nil {
			return err
		}
		return c.showPlan(stdout, &plan)
	}
	parameters.Set("wait", "true")
	var j job.Job
	if err := daemon.do(ctx, method, path, parameters, &j); err != nil {
		return err
	}
	return c.showJob(stdout, &j)
}

// jobTimeout is how long a job may take before the command gives up on it; the
// daemon does a little sooner.
const jobTimeout = 6 * time.Minute

func (c *snapshotCommand) list(ctx context.Context, daemon *client, path string, stdout io.Writer) error {
	parameters := url.Values{}
	if c.sizes {
		parameters.Set("sizes", "true")
	}
	var list snapshot.List
	if err := daemon.do(ctx, http.MethodGet, path, parameters, &list); err != nil {
		return err
	}
	if c.output == "json" {
		return json.NewEncoder(stdout).Encode(list)
	}
	fmt.Fprint(stdout, renderSnapshots(&list, c.all))
	return nil
}

// renderSnapshots shows a list as a table.
func renderSnapshots(list *snapshot.List, all bool) string {
	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	sizes := list.Sizes != nil
	header := "NAME\tSUBVOLUME\tCREATED"
	if sizes {
		header += "\tEXCLUSIVE"
	}
	fmt.Fprintln(table, header+"\tKEPT")
	shown, others := 0, 0
	for i := range list.Snapshots {
		s := &list.Snapshots[i]
		if !s.Ours && !all {
			others++
			continue
		}
		shown++
		name, subvolume := s.Name, "(gone)"
		if !s.Ours {
			name = "/" + s.Path
		}
		if s.Subvolume != nil {
			subvolume = "/" + *s.Subvolume
		}
		fmt.Fprintf(table, "%s\t%s\t%s", printable(name), printable(subvolume), s.Created.Local().Format(time.DateTime))
		if sizes {
			size := "?"
			if s.Exclusive != nil {
				size = humanize.IBytes(*s.Exclusive)
			}
			fmt.Fprintf(table, "\t%s", size)
		}
		fmt.Fprintf(table, "\t%s\n", whyKept(s))
	}
	if shown == 0 {
		out.Reset()
		out.WriteString("No snapshots.\n")
	} else {
		_ = table.Flush() // to a strings.Builder
	}
	if others > 0 {
		fmt.Fprintf(&out, "Others made %d more; --all shows them.\n", others)
	}
	if list.Cleaning > 0 {
		fmt.Fprintf(&out, "The kernel is still giving back the space of %d deleted subvolumes.\n", list.Cleaning)
	}
	if s := list.Sizes; s != nil {
		what := "file data that only this snapshot refers to"
		if s.Method == "qgroups" {
			what = "what only this snapshot refers to, by the quotas of the filesystem"
		}
		fmt.Fprintf(&out, "EXCLUSIVE is %s; to find out took %.1f s and %d lookups.\n", what, s.Seconds, s.Lookups)
	}
	return out.String()
}

func whyKept(s *snapshot.Snapshot) string {
	switch {
	case !s.Ours:
		return "not made by btrfs-governor"
	case s.Protected != "":
		return "protected: " + s.Protected
	case s.Prune != "":
		return "goes with the next prune: " + s.Prune
	}
	return strings.Join(s.Keep, ", ")
}

func (c *snapshotCommand) plan(ctx context.Context, daemon *client, path string, stdout io.Writer) error {
	var f snapshot.Forecast
	parameters := url.Values{"days": {strconv.Itoa(c.days)}}
	if err := daemon.do(ctx, http.MethodGet, path+"/plan", parameters, &f); err != nil {
		return err
	}
	if c.output == "json" {
		return json.NewEncoder(stdout).Encode(f)
	}
	for _, e := range f.Events {
		fmt.Fprintf(stdout, "%s\n", e.Time.Local().Format("Mon 2006-01-02 15:04"))
		for _, name := range e.Created {
			fmt.Fprintf(stdout, "  + %s\n", printable(name))
		}
		for _, d := range e.Deleted {
			fmt.Fprintf(stdout, "  - %s (%s)\n", printable(d.Name), d.Reason)
		}
	}
	fmt.Fprintf(stdout, "On %s there are %d snapshots:\n", f.Until.Local().Format("Mon 2006-01-02 15:04"), len(f.Left))
	for _, name := range f.Left {
		fmt.Fprintf(stdout, "  %s\n", printable(name))
	}
	for _, note := range f.Notes {
		fmt.Fprintf(stdout, "%s.\n", note)
	}
	return nil
}

func (c *snapshotCommand) showPlan(stdout io.Writer, plan *snapshot.Plan) error {
	if c.output == "json" {
		return json.NewEncoder(stdout).Encode(plan)
	}
	fmt.Fprintf(stdout, "Of pool %s this would:\n", plan.Pool)
	for _, w := range plan.Would {
		fmt.Fprintf(stdout, "  %s\n", printable(w))
	}
	for _, d := range plan.Deleted {
		fmt.Fprintf(stdout, "  - %s (%s)\n", printable(d.Name), d.Reason)
	}
	for _, k := range plan.Kept {
		fmt.Fprintf(stdout, "  leave %s, which no rule keeps: %s\n", printable(k.Name), k.Reason)
	}
	return nil
}

func (c *snapshotCommand) showJob(stdout io.Writer, j *job.Job) error {
	if c.output == "json" {
		return json.NewEncoder(stdout).Encode(j)
	}
	var r snapshot.Result
	if err := json.Unmarshal(j.Result, &r); err != nil {
		return errors.Join(errors.New("the daemon's answer has no result"), err)
	}
	for i := range r.Created {
		s := &r.Created[i]
		path := s.Path
		if path == "" {
			path = "/" + s.PoolPath + " (no mount shows it)"
		}
		fmt.Fprintln(stdout, printable(path))
		for _, n := range s.Nested {
			fmt.Fprintf(stdout, "  without the subvolume %s in it\n", printable(n))
		}
	}
	for _, d := range r.Deleted {
		fmt.Fprintf(stdout, "deleted %s (%s)\n", printable(d.Name), d.Reason)
	}
	for _, k := range r.Kept {
		fmt.Fprintf(stdout, "left %s, which no rule keeps: %s\n", printable(k.Name), k.Reason)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(stdout, "%s.\n", note)
	}
	if len(r.Created)+len(r.Deleted)+len(r.Kept) == 0 {
		fmt.Fprintln(stdout, "Nothing to do.")
	}
	return nil
}
