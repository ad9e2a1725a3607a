package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// Snapshots is the snapshot runner, see snapshot.Runner.
type Snapshots interface {
	Create(pool btrfs.UUID, o snapshot.CreateOptions, requester string) (job.Job, error)
	Delete(pool btrfs.UUID, name, requester string) (job.Job, error)
	Prune(pool btrfs.UUID, requester string) (job.Job, error)
	Wait(ctx context.Context, id string) (job.Job, error)
	List(ctx context.Context, pool btrfs.UUID, sizes bool) (*snapshot.List, error)
	Forecast(pool btrfs.UUID, until time.Time) (*snapshot.Forecast, error)
	Overview(pool btrfs.UUID) (snapshot.Overview, bool)
	PlanCreate(ctx context.Context, pool btrfs.UUID, o snapshot.CreateOptions) (*snapshot.Plan, error)
	PlanDelete(ctx context.Context, pool btrfs.UUID, name string) (*snapshot.Plan, error)
	PlanPrune(ctx context.Context, pool btrfs.UUID) (*snapshot.Plan, error)
}

// waitPatience is how long a request with wait=true may take: less than the
// write timeout of the connection.
const waitPatience = 5 * time.Minute

func (a *api) createSnapshots(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	o := snapshot.CreateOptions{Pin: p.flag("pin")}
	if subvolume, given := p.text("subvolume"); given {
		o.Subvolume = &subvolume
	}
	return a.runSnapshots(w, r, p,
		func(pool btrfs.UUID) (*snapshot.Plan, error) { return a.cfg.Snapshots.PlanCreate(r.Context(), pool, o) },
		func(pool btrfs.UUID) (job.Job, error) { return a.cfg.Snapshots.Create(pool, o, requester(r)) })
}

func (a *api) deleteSnapshot(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	return a.runSnapshots(w, r, p,
		func(pool btrfs.UUID) (*snapshot.Plan, error) {
			return a.cfg.Snapshots.PlanDelete(r.Context(), pool, name)
		},
		func(pool btrfs.UUID) (job.Job, error) { return a.cfg.Snapshots.Delete(pool, name, requester(r)) })
}

func (a *api) pruneSnapshots(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	return a.runSnapshots(w, r, p,
		func(pool btrfs.UUID) (*snapshot.Plan, error) { return a.cfg.Snapshots.PlanPrune(r.Context(), pool) },
		func(pool btrfs.UUID) (job.Job, error) { return a.cfg.Snapshots.Prune(pool, requester(r)) })
}

// runSnapshots answers a request that changes snapshots: with what it would do,
// with its job, or with the ended job.
func (a *api) runSnapshots(w http.ResponseWriter, r *http.Request, p *parameters, plan func(btrfs.UUID) (*snapshot.Plan, error), start func(btrfs.UUID) (job.Job, error)) error {
	dryRun, wait := p.flag("dry_run"), p.flag("wait")
	if err := p.done(); err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	if dryRun {
		what, err := plan(reading.UUID)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, what)
		return nil
	}
	j, err := start(reading.UUID)
	note(w, j.ID)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/api/v1/jobs/"+j.ID)
	if !wait {
		writeJSON(w, http.StatusAccepted, j)
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitPatience)
	defer cancel()
	go func() { // what waits must not hold up the end of the daemon
		select {
		case <-ctx.Done():
		case <-a.cfg.Stopping:
			cancel()
		}
	}()
	j, err = a.cfg.Snapshots.Wait(ctx, j.ID)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		late := problemf(http.StatusGatewayTimeout, "Job %s has not ended yet: a disk may hang, or many snapshots are being deleted. Look at it with GET /api/v1/jobs/%[1]s.", j.ID)
		late.Job = &j
		return late
	}
	if err != nil {
		return err
	}
	if j.State != job.Succeeded {
		failed := problemf(http.StatusConflict, "%s.", strings.TrimSuffix(j.Reason, "."))
		failed.Job = &j
		return failed
	}
	if paths, ok := wantsPaths(r, &j); ok {
		return writePaths(w, paths)
	}
	writeJSON(w, http.StatusOK, j)
	return nil
}

// wantsPaths returns where the snapshots of a job can be read, if the request
// asks for a plain text: a script then needs nothing to take JSON apart.
func wantsPaths(r *http.Request, j *job.Job) ([]snapshot.Created, bool) {
	accepted, _, err := mime.ParseMediaType(r.Header.Get("Accept"))
	if err != nil || accepted != "text/plain" || j.Kind != snapshot.KindCreate {
		return nil, false
	}
	var result snapshot.Result
	if err := json.Unmarshal(j.Result, &result); err != nil {
		return nil, false
	}
	return result.Created, true
}

// writePaths writes one path a line.
func writePaths(w http.ResponseWriter, created []snapshot.Created) error {
	var text strings.Builder
	for i := range created {
		if created[i].Path == "" {
			return problemf(http.StatusConflict, "The snapshot /%s was taken, but no mount shows it: mount the top of the pool (subvolid=5) or have the directory for snapshots within a subvolume that is mounted.", created[i].PoolPath)
		}
		text.WriteString(created[i].Path + "\n")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, text.String()) // who hung up gets nothing
	return nil
}

// maxPlanDays bounds how far a forecast looks ahead.
const maxPlanDays = 3660

func (a *api) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	sizes := p.flag("sizes")
	if err := p.done(); err != nil {
		return err
	}
	if err := a.snapshotsHere(); err != nil {
		return err
	}
	if sizes {
		if err := a.dear(w, r); err != nil {
			return err
		}
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	list, err := a.cfg.Snapshots.List(r.Context(), reading.UUID, sizes)
	if err != nil {
		return err
	}
	if !a.seesFiles(r) {
		list.Snapshots = slices.DeleteFunc(list.Snapshots, func(s snapshot.Snapshot) bool { return !s.Ours })
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

// dear refuses those who may not command: it costs too much for anybody to ask.
func (a *api) dear(w http.ResponseWriter, r *http.Request) error {
	refused := a.authorise(r)
	if refused == nil {
		return nil
	}
	if refused.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", bearerChallenge)
	}
	return refused
}

func (a *api) planSnapshots(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	days := 7
	if text, given := p.text("days"); given {
		if days, err = strconv.Atoi(text); err != nil || days < 1 || days > maxPlanDays {
			p.fail("days", "must be a number from 1 to %d, not %q", maxPlanDays, text)
		}
	}
	if err := p.done(); err != nil {
		return err
	}
	if err := a.snapshotsHere(); err != nil {
		return err
	}
	if err := a.dear(w, r); err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	forecast, err := a.cfg.Snapshots.Forecast(reading.UUID, time.Now().AddDate(0, 0, days))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, forecast)
	return nil
}

// snapshotsHere refuses where nothing may be changed.
func (a *api) snapshotsHere() error {
	if a.cfg.Snapshots == nil {
		return problemf(http.StatusForbidden, "The daemon runs with --read-only: it takes no snapshots and knows of none.")
	}
	return nil
}
