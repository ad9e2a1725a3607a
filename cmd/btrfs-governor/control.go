package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/common/version"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/config"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/logging"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// defaultSocket is where the daemon listens for commands, and where the
// commands look for it.
const defaultSocket = "/run/btrfs-governor/api.sock"

// keptJobs is how many ended jobs are remembered.
const keptJobs = 200

// control is what changes pools. With --read-only, or on
// recorded pools, only jobs is set, and empty.
type control struct {
	logger    log.Logger
	jobs      *job.Store
	token     *httpapi.Token
	scrubs    *scrub.Runner
	snapshots *snapshot.Runner
	// Of the daemon only.
	actions       *alertmanager.Actions
	notifications *notify.Bridge
	silencer      *alertmanager.Silencer
	history       *history.Store

	sys string // where sysfs is
	// started is set once a configuration was put to use.
	started bool
	// release gives the state directory back.
	release func()
}

func (c *serveCommand) newControl(ctx context.Context, logger log.Logger, client *btrfs.Client, exporter *collector.Exporter) (*control, error) {
	// Recorded pools are none of this machine: there is nothing to change.
	if c.readOnly || c.recorded != "" {
		jobs, err := job.Open(nil, 0)
		return &control{jobs: jobs, release: func() {}}, err
	}
	release, err := lockStateDir(ctx, c.stateDir)
	if err != nil {
		return nil, err
	}
	k, err := newControl(logger, client, c.paths, state.NewDir(c.stateDir), freeOf(exporter))
	if err == nil {
		k.history, err = history.Open(logger, state.NewDir(c.stateDir), time.Now)
	}
	if err == nil {
		k.actions, err = newActions(logger, c.stateDir, k, exporter, client)
	}
	if err == nil {
		watch := newWorkWatch(client, k.scrubs, time.Now)
		k.silencer, err = alertmanager.NewSilencer(alertmanager.SilenceSettings{}, alertmanager.DefaultSilenceTiming(), watch.work, time.Now, logger)
	}
	if err == nil {
		k.notifications, err = notify.New(notify.Config{Logger: logger, State: state.NewDir(c.stateDir), Version: version.Version})
	}
	if err == nil {
		k.release = func() {
			if err := k.notifications.Close(); err != nil {
				level.Warn(logger).Log("msg", "The queue of notifications could not be closed", "err", err)
			}
			release()
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	return k, nil
}

func newControl(logger log.Logger, client *btrfs.Client, paths btrfs.Paths, dir *state.Dir, free func(btrfs.UUID) (uint64, error)) (*control, error) {
	jobs, err := job.Open(dir, keptJobs)
	if errors.Is(err, state.ErrDamaged) {
		level.Warn(logger).Log("msg", "Jobs are missing in the history", "err", err)
	} else if err != nil {
		return nil, err
	}
	scrubs, err := scrub.New(scrub.Config{Logger: logger, Client: client, Paths: paths, State: dir, Jobs: jobs})
	if err != nil {
		return nil, err
	}
	snapshots, err := snapshot.New(snapshot.Config{Logger: logger, Client: client, State: dir, Jobs: jobs, Free: free})
	if err != nil {
		return nil, err
	}
	return &control{logger: logger, jobs: jobs, token: httpapi.NewToken(dir), scrubs: scrubs, snapshots: snapshots, sys: paths.Sys}, nil
}

// newActions makes what acts on alerts.
func newActions(logger log.Logger, stateDir string, k *control, exporter *collector.Exporter, client *btrfs.Client) (*alertmanager.Actions, error) {
	actions, err := alertmanager.NewActions(alertmanager.ActionsConfig{
		Logger: logger, State: state.NewDir(stateDir), Jobs: k.jobs, Scrubs: k.scrubs, Snapshots: k.snapshots,
		Advise: adviceOf(exporter), Here: poolsHere(client, k.history), Now: time.Now,
	})
	if errors.Is(err, state.ErrDamaged) {
		level.Warn(logger).Log("msg", "It is not known of all alerts what was done about them", "err", err)
		err = nil
	}
	return actions, err
}

// poolsHere returns what tells whether a pool is of this machine: it is mounted, or
// has a history here. It waits for no disk.
func poolsHere(client *btrfs.Client, past *history.Store) func(btrfs.UUID) bool {
	return func(pool btrfs.UUID) bool {
		_, err := client.ExclusiveOperation(pool) // it is in sysfs while the pool is mounted
		return !errors.Is(err, fs.ErrNotExist) || len(past.Samples(pool, time.Time{}, 1)) > 0
	}
}

// freeOf returns what btrfs_pool_free_bytes says of a pool.
func freeOf(exporter *collector.Exporter) func(btrfs.UUID) (uint64, error) {
	return func(pool btrfs.UUID) (uint64, error) {
		readings, err := exporter.Pools()
		for i := range readings {
			r := &readings[i]
			switch {
			case r.UUID != pool:
			case r.Facts != nil && r.Facts.Report != nil && r.Facts.Report.Exact:
				return r.Facts.Report.Free, nil
			default:
				return 0, errors.Join(fmt.Errorf("pool %s: its free space is not known", pool), r.Err)
			}
		}
		return 0, errors.Join(fmt.Errorf("pool %s: it gives no answer", pool), err)
	}
}

// loadToken reads the token again, so that a reload rotates it.
func (k *control) loadToken(cfg *config.Config) error {
	return k.token.Load(cfg.API.TokenFile)
}

// prepare makes of a configuration what can fail to be made, and returns what
// puts it to use.
func (k *control) prepare(cfg *config.Config) (use func(), err error) {
	if k.scrubs == nil {
		return func() {}, nil
	}
	scrubs, snapshots := cfg.ScrubSettings(k.sys), cfg.SnapshotSettings()
	actions, err := cfg.AlertActions()
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("find the name of this host: %w", err)
	}
	silences, err := cfg.SilenceSettings(host)
	if err != nil {
		return nil, err
	}
	useSilences, err := k.silencer.Prepare(silences)
	if err != nil {
		return nil, fmt.Errorf("alertmanager.silences: %w", err)
	}
	prepareReceivers := k.notifications.Prepare
	if !k.started {
		// A mistake in the file of a token must not stop all the rest.
		prepareReceivers = k.notifications.PrepareStart
	}
	useReceivers, err := prepareReceivers(cfg.Receivers())
	if err != nil {
		return nil, fmt.Errorf("notify.receivers: %w", err)
	}
	// The last that can fail, for it is put to use at once.
	if err := k.loadToken(cfg); err != nil {
		return nil, err
	}
	return func() {
		k.started = true
		for _, key := range cfg.InTheClear() {
			level.Warn(k.logger).Log("msg", "What gives access goes over the network unencrypted; use https", "key", key)
		}
		useSilences()
		useReceivers()
		k.scrubs.SetSettings(scrubs)
		k.snapshots.SetSettings(snapshots)
		k.actions.SetActions(actions)
	}, nil
}

// controlTasks are the tasks that take commands and carry them out.
func (c *serveCommand) controlTasks(ctx context.Context, k *control, handler http.Handler, logs *logging.Loggers) ([]task, error) {
	if k.scrubs == nil {
		return nil, nil
	}
	tasks := []task{k.scrubs, k.snapshots, k.notifications, silencerTask{k}}
	if c.apiSocket == "" {
		return tasks, nil
	}
	l, err := listenUnix(ctx, c.apiSocket)
	if err != nil {
		return nil, err
	}
	return append(tasks, &socketServer{l, handler, logs}), nil
}

// silencerTask keeps the silences, and looks at them when a scrub changes.
type silencerTask struct{ *control }

// Run implements task.
func (t silencerTask) Run(ctx context.Context) error {
	var watch sync.WaitGroup
	watch.Go(func() { wakeOnEvents(ctx.Done(), t.control) })
	t.silencer.Run(ctx)
	watch.Wait()
	return nil
}

// listenUnix opens the socket for commands. One that nobody serves any more is
// taken over.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	const remedy = "; name another one with --api.socket, or none with --api.socket="
	dir := filepath.Dir(path)
	_, err := os.Stat(dir)
	missing := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w"+remedy, err)
	}
	if missing { // whatever the umask says: the socket itself is what is guarded
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the directory of the socket: %w"+remedy, err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		c, dialErr := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
		if dialErr == nil {
			c.Close()
			return nil, fmt.Errorf("listen on %s: another btrfs-governor runs; stop it, or give this one another socket with --api.socket and another --state.dir", path)
		}
		// Only a socket: never remove what somebody keeps under that name.
		if info, statErr := os.Lstat(path); statErr == nil && info.Mode().Type() == os.ModeSocket && errors.Is(dialErr, syscall.ECONNREFUSED) {
			if err = os.Remove(path); err == nil {
				l, err = new(net.ListenConfig).Listen(ctx, "unix", path)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w"+remedy, path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}

// socketServer answers the requests that come over the Unix socket.
type socketServer struct {
	listener net.Listener
	handler  http.Handler
	logs     *logging.Loggers
}

// Run serves until ctx is done.
func (s *socketServer) Run(ctx context.Context) error {
	server := httpapi.NewSocketServer(s.handler)
	server.ErrorLog = s.logs.Server
	level.Info(s.logs.Logger).Log("msg", "Taking commands", "socket", s.listener.Addr())
	return serveUntil(ctx, server, s.listener.Addr(), s.logs.Logger, func() error { return server.Serve(s.listener) })
}

// lockPatience is how long the state directory is waited for: a process that
// was killed ends only when the kernel is done with the batch that it scrubs.
const lockPatience = 20 * time.Second

// lockStateDir makes sure that no other process of ours uses the state
// directory. The lock ends with the process.
func lockStateDir(ctx context.Context, dir string) (release func(), err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another btrfs-governor uses the state directory %s: command that one instead, or stop it", dir)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
