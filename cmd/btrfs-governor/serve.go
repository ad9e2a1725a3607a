package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/config"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/logging"
	"github.com/btrfs-governor/btrfs-governor/internal/selfstat"
)

// serveCommand is the daemon: `btrfs-governor serve`.
type serveCommand struct {
	name string

	configFile      string
	configFileGiven bool
	configCheck     bool
	stateDir        string
	readOnly        bool
	paths           btrfs.Paths
	recorded        string
	collectors      map[string]*bool // on or off, by name
	web             *web.FlagConfig
	telemetryPath   string
	maxRequests     requestLimit
	apiSocket       string
	prometheusURL   string
	prometheusHTTP  string
	logLevel        string
	logFormat       string
}

func newServeCommand(app *kingpin.Application) *serveCommand {
	cmd := app.Command("serve", "Export the machine's btrfs pools to Prometheus.")
	c := &serveCommand{name: cmd.FullCommand(), collectors: make(map[string]*bool)}
	paths := btrfs.DefaultPaths()

	cmd.Flag("config.file", "Configuration file; the default one may be missing.").
		Default("/etc/btrfs-governor/config.yml").IsSetByUser(&c.configFileGiven).StringVar(&c.configFile)
	cmd.Flag("config.check", "Check the configuration and the web configuration, and exit.").BoolVar(&c.configCheck)
	cmd.Flag("state.dir", "Directory for what must outlive the process.").
		Default("/var/lib/btrfs-governor").StringVar(&c.stateDir)
	cmd.Flag("read-only", "Export metrics only: there is no way to change anything, and no state directory is needed.").BoolVar(&c.readOnly)

	cmd.Flag("path.procfs", "Where /proc of the host is mounted.").Default(paths.Proc).StringVar(&c.paths.Proc)
	cmd.Flag("path.sysfs", "Where /sys of the host is mounted.").Default(paths.Sys).StringVar(&c.paths.Sys)
	cmd.Flag("path.rootfs", "Where / of the host is mounted.").Default(paths.Root).StringVar(&c.paths.Root)
	cmd.Flag("path.recorded", "Serve the recorded pools (*.json) of this directory instead of the machine's.").StringVar(&c.recorded)

	for _, info := range collector.All() {
		state := "off"
		if info.Default {
			state = "on"
		}
		c.collectors[info.Name] = cmd.Flag("collector."+info.Name, fmt.Sprintf("%s (default: %s).", strings.TrimSuffix(info.Help, "."), state)).
			Default(strconv.FormatBool(info.Default)).Bool()
	}

	c.web = kingpinflag.AddFlags(cmd, ":10134")
	cmd.Flag("web.telemetry-path", "Path of the metrics.").Default("/metrics").StringVar(&c.telemetryPath)
	cmd.Flag("web.max-requests", "Most scrapes to answer at the same time; 0 is no limit.").Default("200").SetValue(&c.maxRequests)

	cmd.Flag("api.socket", "Unix socket on which everything can be commanded without a token; empty: none.").
		Default(defaultSocket).StringVar(&c.apiSocket)
	cmd.Flag("prometheus.url", "URL of the Prometheus that has the history of the pools; empty: only what is kept in the state directory.").
		StringVar(&c.prometheusURL)
	cmd.Flag("prometheus.http-config", "File with the http_config for --prometheus.url: certificates, passwords, a proxy; read at the start.").
		StringVar(&c.prometheusHTTP)

	cmd.Flag("log.level", "Least level of the messages to log: "+strings.Join(logging.Levels(), ", ")+".").
		Default("info").HintOptions(logging.Levels()...).StringVar(&c.logLevel)
	cmd.Flag("log.format", "Format of the log: "+strings.Join(logging.Formats(), ", ")+".").
		Default("logfmt").HintOptions(logging.Formats()...).StringVar(&c.logFormat)
	return c
}

// run serves until ctx is done. Whatever can be wrong with the command line,
// the files it names or the machine is found before the first request is
// answered.
func (c *serveCommand) run(ctx context.Context, stdout, stderr io.Writer) error {
	logs, err := logging.New(stderr, c.logLevel, c.logFormat)
	if err != nil {
		return err
	}
	if err := httpapi.CheckTelemetryPath(c.telemetryPath); err != nil {
		return fmt.Errorf("--web.telemetry-path: %w", err)
	}
	cfg, err := c.loadConfig()
	if err != nil {
		return err
	}
	if err := web.Validate(*c.web.WebConfigFile); err != nil {
		return fmt.Errorf("--web.config.file=%s: %s", *c.web.WebConfigFile, oneLine(err))
	}
	prometheusServer, err := c.prometheusServer()
	if err != nil {
		return err
	}
	if c.configCheck {
		if err := c.checkFiles(cfg); err != nil {
			return err
		}
		fmt.Fprintln(stdout, "The configuration is good.")
		return nil
	}
	if !c.readOnly {
		if err := checkStateDir(c.stateDir); err != nil {
			return err
		}
	}
	client := btrfs.NewClient(c.paths)
	exporter, err := c.newExporter(logs.Logger, client)
	if err != nil {
		return err
	}
	control, err := c.newControl(ctx, logs.Logger, client, exporter)
	if err != nil {
		return err
	}
	defer control.release()
	reloader, err := config.NewReloader(cfg, c.loadConfig, func(cfg *config.Config) (func(), error) {
		use, err := control.prepare(cfg)
		return func() {
			exporter.SetTimeout(time.Duration(cfg.Scrape.Timeout))
			exporter.SetExclude(cfg.Pools.Excludes)
			use()
		}, err
	})
	if err != nil {
		return err
	}
	reload := func() error { return reloadConfig(reloader, logs.Logger) }
	usage, err := selfstat.NewCollector()
	if err != nil {
		return err
	}

	process := []prometheus.Collector{
		// Without go_memstats_*: two dozen series that hardly anybody looks at,
		// and a tenth of what a scrape of one pool costs.
		collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()),
		usage,
		versioncollector.NewCollector("btrfs_governor"),
		reloader,
	}
	host, err := os.Hostname()
	if err != nil {
		host = "this machine"
	}
	settings := httpapi.Config{
		Logger:        logs.Logger,
		Version:       version.Version,
		Host:          host,
		TelemetryPath: c.telemetryPath,
		MaxRequests:   int(c.maxRequests),
		Pools:         exporter,
		// No request is answered before everything is ready.
		Ready:    func() bool { return ctx.Err() == nil },
		Reload:   reload,
		Jobs:     control.jobs,
		Token:    control.token,
		Stopping: ctx.Done(),
	}
	if control.scrubs != nil {
		settings.Scrubs, settings.Snapshots = control.scrubs, control.snapshots
		settings.Alerts, settings.Notifications = control.actions, control.notifications
		process = append(process, control.scrubs, control.snapshots, control.actions, control.silencer, control.notifications)
	}
	settings.Process = process
	past, pastTasks, err := newHistory(logs.Logger, control.history, exporter, prometheusServer)
	if err != nil {
		return err
	}
	settings.History = past
	if control.history != nil {
		settings.DeviceErrors = control.history
	}
	handler, err := httpapi.New(settings)
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, c.web)
	if err != nil {
		return err
	}
	tasks, err := c.controlTasks(ctx, control, handler, logs)
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		return err
	}

	level.Info(logs.Logger).Log("msg", "Starting "+programName, "version", version.Info(), "build_context", version.BuildContext())
	tasks = append(tasks, newHangupTask(reload), systemdTask{logs.Logger})
	tasks = append(tasks, pastTasks...)
	for _, l := range listeners {
		tasks = append(tasks, newServer(l, handler, c.web, logs))
	}
	err = runTasks(ctx, tasks)
	level.Info(logs.Logger).Log("msg", "Stopped")
	return err
}

func (c *serveCommand) loadConfig() (*config.Config, error) {
	return config.Load(c.configFile, !c.configFileGiven)
}

// checkFiles reads the files that the configuration names, as the start does.
func (c *serveCommand) checkFiles(cfg *config.Config) error {
	if c.readOnly || c.recorded != "" {
		return nil // nothing is sent, and nobody commands
	}
	if cfg.API.TokenFile != "" {
		if _, err := httpapi.ReadToken(cfg.API.TokenFile); err != nil {
			return err
		}
	}
	return cfg.CheckFiles()
}

func (c *serveCommand) newExporter(logger log.Logger, client *btrfs.Client) (*collector.Exporter, error) {
	source := collector.NewKernelSource(client)
	if c.recorded != "" {
		var err error
		if source, err = collector.NewRecordedSource(c.recorded); err != nil {
			return nil, fmt.Errorf("--path.recorded: %w", err)
		}
	}
	var enabled []string
	for _, info := range collector.All() {
		if *c.collectors[info.Name] {
			enabled = append(enabled, info.Name)
		}
	}
	return collector.New(collector.Config{Logger: logger, Source: source, Enabled: enabled})
}

// checkStateDir makes sure that the state directory exists and takes files.
func checkStateDir(dir string) error {
	const remedy = "; make it writable, name another one with --state.dir, or give --read-only, which needs none"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create the state directory: %w"+remedy, err)
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	// The name of the temporary file is of no use to anybody.
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		err = failed.Err
	}
	if err != nil {
		return fmt.Errorf("write to the state directory %s: %w"+remedy, dir, err)
	}
	return nil
}

func reloadConfig(reloader *config.Reloader, logger log.Logger) error {
	notifySystemd(logger, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
	defer notifySystemd(logger, daemon.SdNotifyReady)
	if err := reloader.Reload(); err != nil {
		level.Error(logger).Log("msg", "The configuration stays as it was", "err", err)
		return err
	}
	level.Info(logger).Log("msg", "The configuration is reloaded")
	return nil
}

// hangupTask reloads the configuration on SIGHUP.
type hangupTask struct {
	signals chan os.Signal
	reload  func() error
}

// newHangupTask returns a task that from now on catches SIGHUP, which would
// otherwise end the program.
func newHangupTask(reload func() error) *hangupTask {
	t := &hangupTask{signals: make(chan os.Signal, 1), reload: reload}
	signal.Notify(t.signals, syscall.SIGHUP)
	return t
}

func (t *hangupTask) Run(ctx context.Context) error {
	defer signal.Stop(t.signals)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.signals:
			_ = t.reload() // which logs its error
		}
	}
}

// systemdTask tells systemd, if it started us, that the daemon is ready and
// that it stops.
type systemdTask struct{ logger log.Logger }

func (t systemdTask) Run(ctx context.Context) error {
	notifySystemd(t.logger, daemon.SdNotifyReady)
	<-ctx.Done()
	notifySystemd(t.logger, daemon.SdNotifyStopping)
	return nil
}

func notifySystemd(logger log.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		level.Warn(logger).Log("msg", "Could not tell systemd the state", "state", state, "err", err)
	}
}

// requestLimit is the value of --web.max-requests.
type requestLimit int

// Set implements kingpin.Value.
func (l *requestLimit) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("--web.max-requests must be a number from 0 up, not %q", s)
	}
	*l = requestLimit(n)
	return nil
}

// String implements kingpin.Value.
func (l *requestLimit) String() string { return strconv.Itoa(int(*l)) }

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
