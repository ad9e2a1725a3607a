package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/go-kit/log"
	"github.com/prometheus/common/version"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/config"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// capacityCommand is `btrfs-governor capacity`.
type capacityCommand struct {
	name     string
	pool     string
	whatIf   string
	output   string
	socket   string
	stateDir string
	recorded string
}

func newCapacityCommand(app *kingpin.Application) *capacityCommand {
	cmd := app.Command("capacity", "Show what pools can still hold, and what they could after a change of their devices. It works without the daemon too.")
	c := &capacityCommand{name: cmd.FullCommand()}
	cmd.Arg("pool", "UUID, label, beginning of the UUID, or a path on the pool; all pools if it is left out.").StringVar(&c.pool)
	cmd.Flag("pool", "The same.").StringVar(&c.pool)
	cmd.Flag("what-if", "Show what would be after changes, made in this order: add=SIZE, remove=DEVID, replace=DEVID:SIZE, convert=PROFILE; one of each, separated by commas.").
		PlaceHolder("add=4TiB,remove=2").StringVar(&c.whatIf)
	cmd.Flag("output", "table or json.").Default("table").EnumVar(&c.output, "table", "json")
	cmd.Flag("api.socket", "Unix socket of the daemon; empty: read the pools here.").Default(defaultSocket).StringVar(&c.socket)
	cmd.Flag("state.dir", "Without the daemon: where the history of the pools is, for the forecast.").Default("/var/lib/btrfs-governor").StringVar(&c.stateDir)
	cmd.Flag("path.recorded", "Show the recorded pools (*.json) of this directory instead of the machine's.").StringVar(&c.recorded)
	return c
}

func (c *capacityCommand) run(ctx context.Context, stdout, stderr io.Writer) error {
	changes, err := whatIfQuery(c.whatIf)
	if err != nil {
		return fmt.Errorf("--what-if: %w", err)
	}
	api, pools, err := c.findPools(ctx, stderr)
	if err != nil {
		return err
	}
	defer api.http.CloseIdleConnections()
	if changes != "" && len(pools) != 1 {
		var names []string
		for i := range pools {
			names = append(names, strings.TrimSpace(pools[i].UUID.String()+" "+printable(pools[i].Label)))
		}
		return fmt.Errorf("--what-if is of one pool: %w", whichPool(names))
	}
	var answers []json.RawMessage
	var failed error
	for i := range pools {
		var answer json.RawMessage
		if err := api.do(ctx, http.MethodGet, "/api/v1/pools/"+pools[i].UUID.String()+"/capacity"+changes, nil, &answer); err != nil {
			// One pool that cannot be read does not hide the others.
			if len(pools) == 1 {
				return err
			}
			if failed != nil {
				fail(stderr, failed)
			}
			failed = err
			continue
		}
		answers = append(answers, answer)
		if c.output == "table" {
			var figures capacityAnswer
			if err := json.Unmarshal(answer, &figures); err != nil {
				return fmt.Errorf("read the answer of the API: %w", err)
			}
			if len(answers) > 1 {
				fmt.Fprintln(stdout)
			}
			width, _ := terminalSize(stdout)
			v := capacityView{pool: &pools[i], capacityAnswer: &figures, whatIf: c.whatIf, now: time.Now(), width: width, marks: plainMarks}
			if width > 0 && isUTF8(os.Getenv) {
				v.marks = blockMarks
			}
			fmt.Fprint(stdout, v.render())
		}
	}
	if c.output == "json" {
		err = writeAnswers(stdout, answers, len(pools) == 1)
	} else if len(pools) == 0 {
		fmt.Fprintln(stdout, "No btrfs pool is mounted.")
	}
	return errors.Join(failed, err)
}

// writeAnswers writes what the API answered: of one pool that alone, else a list.
func writeAnswers(w io.Writer, answers []json.RawMessage, one bool) error {
	if one {
		return json.NewEncoder(w).Encode(answers[0])
	}
	if answers == nil {
		answers = []json.RawMessage{}
	}
	return json.NewEncoder(w).Encode(answers)
}

// findPools returns the pools to show, and what answers for them: the daemon or,
// where none runs or this user may not ask it, this process.
func (c *capacityCommand) findPools(ctx context.Context, stderr io.Writer) (*client, []capacityPool, error) {
	name := c.pool
	if name != "" {
		var err error
		if name, err = newClient(c.socket).findPool(ctx, name); err != nil { // of a path it asks nobody
			return nil, nil, err
		}
	}
	if c.socket != "" && c.recorded == "" {
		daemon := newClient(c.socket)
		pools, err := listPools(ctx, daemon, name)
		switch {
		case errors.Is(err, errNoDaemon):
			fmt.Fprintf(stderr, "No daemon answers on %s; the pools are read without it.\n", c.socket)
		case errors.Is(err, fs.ErrPermission):
			fmt.Fprintf(stderr, "Only root may ask the daemon on %s; the pools are read without it.\n", c.socket)
		default:
			return daemon, pools, err
		}
		daemon.http.CloseIdleConnections()
	}
	api, err := c.newLocalAPI(stderr)
	if err != nil {
		return nil, nil, err
	}
	pools, err := listPools(ctx, api, name)
	return api, pools, err
}

// capacityPool is what the API tells of a pool beside its capacity.
type capacityPool struct {
	UUID       btrfs.UUID        `json:"uuid"`
	Label      string            `json:"label"`
	Mountpoint string            `json:"mountpoint"`
	Used       btrfs.Opt[uint64] `json:"used_bytes"`
	StatfsFree btrfs.Opt[uint64] `json:"statfs_free_bytes"`
	Error      string            `json:"error"`
}

// listPools returns the pool of a name, or all.
func listPools(ctx context.Context, api *client, name string) ([]capacityPool, error) {
	if name != "" {
		pools := make([]capacityPool, 1)
		err := api.do(ctx, http.MethodGet, "/api/v1/pools/"+url.PathEscape(name), nil, &pools[0])
		return pools, err
	}
	var answer struct {
		Pools []capacityPool `json:"pools"`
	}
	err := api.do(ctx, http.MethodGet, "/api/v1/pools", nil, &answer)
	return answer.Pools, err
}

// newLocalAPI returns a client of the daemon's own API that asks this process, which
// reads the pools. What it answers is therefore what the daemon would.
func (c *capacityCommand) newLocalAPI(stderr io.Writer) (*client, error) {
	source := collector.NewKernelSource(btrfs.NewClient(btrfs.DefaultPaths()))
	if c.recorded != "" {
		var err error
		if source, err = collector.NewRecordedSource(c.recorded); err != nil {
			return nil, fmt.Errorf("--path.recorded: %w", err)
		}
	}
	exporter, err := collector.New(collector.Config{
		Logger: log.NewNopLogger(), Source: source, Timeout: time.Duration(config.Default().Scrape.Timeout),
	})
	if err != nil {
		return nil, err
	}
	jobs, err := job.Open(nil, 0)
	if err != nil {
		return nil, err
	}
	settings := httpapi.Config{
		Logger: log.NewNopLogger(), Version: version.Version, TelemetryPath: "/metrics", Pools: exporter, Jobs: jobs,
		Ready: func() bool { return true }, Reload: func() error { return nil },
	}
	if c.recorded == "" { // there is no history of recorded pools
		settings.History = &fileHistory{dir: state.NewDir(c.stateDir), pools: exporter, stderr: stderr}
	}
	handler, err := httpapi.New(settings)
	if err != nil {
		return nil, err
	}
	return &client{http: &http.Client{Transport: handlerTransport{handler}}}, nil
}

// fileHistory forecasts from the files of the daemon, of which it changes none.
type fileHistory struct {
	dir    *state.Dir
	pools  *collector.Exporter
	stderr io.Writer
}

// Samples implements httpapi.History; nobody asks for them.
func (h *fileHistory) Samples(btrfs.UUID, time.Time, int) []history.Sample { return nil }

// Forecast implements httpapi.History.
func (h *fileHistory) Forecast(pool btrfs.UUID) (history.Forecast, bool) {
	readings, err := h.pools.Pools()
	i := slices.IndexFunc(readings, func(r collector.PoolReading) bool { return r.UUID == pool })
	if i < 0 {
		if err != nil {
			fail(h.stderr, err)
		}
		return history.Forecast{}, false
	}
	f, ok, err := history.ReadForecast(h.dir, &readings[i], time.Now())
	switch {
	case errors.Is(err, fs.ErrPermission):
		fail(h.stderr, fmt.Errorf("there is no forecast: %w: run this as root", err))
	case err != nil:
		fail(h.stderr, fmt.Errorf("there is no forecast: %w", err))
	}
	return f, ok
}

// handlerTransport has a handler of this process answer requests.
type handlerTransport struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &answerWriter{header: make(http.Header), status: http.StatusOK}
	t.handler.ServeHTTP(w, r)
	return &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}, nil
}

// answerWriter keeps an answer.
type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *answerWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *answerWriter) WriteHeader(status int) { w.status = status }

// Write implements http.ResponseWriter.
func (w *answerWriter) Write(b []byte) (int, error) { return w.body.Write(b) }

// whatIfQuery returns the changes of --what-if as the query of a request, in their
// order; "" where there are none. Their values are looked at by the API.
func whatIfQuery(text string) (string, error) {
	if strings.TrimSpace(text) == "" {
		return "", nil
	}
	kinds := []string{"add", "remove", "replace", "convert"}
	given := make(map[string]bool)
	query := ""
	for change := range strings.SplitSeq(text, ",") {
		kind, value, _ := strings.Cut(strings.TrimSpace(change), "=")
		if !slices.Contains(kinds, kind) || value == "" {
			return "", fmt.Errorf("%q is no change: give add=SIZE, remove=DEVID, replace=DEVID:SIZE or convert=PROFILE, separated by commas, such as add=4TiB,remove=2", change)
		}
		if given[kind] {
			return "", fmt.Errorf("%s stands there twice: give one change of each kind", kind)
		}
		given[kind] = true
		query += "&" + kind + "=" + url.QueryEscape(value)
	}
	return "?" + query[1:], nil
}
