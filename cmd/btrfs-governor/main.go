// Command btrfs-governor runs next to btrfs pools and exports what is true of
// them to Prometheus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	_ "time/tzdata" // scrub.timezone on machines without zoneinfo

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

const programName = "btrfs-governor"

// gcPercent trades some CPU for memory: the live heap is small, and the
// program shares a Raspberry Pi with others. GOGC overrides it.
const gcPercent = 50

// maxProcs is how many threads run Go code at once. Scrapes are short, and
// handing one from thread to thread costs more than it gains; a thread that
// waits for a disk does not count. GOMAXPROCS overrides it.
const maxProcs = 1

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(maxProcs)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// noFileExpansion keeps kingpin from taking an argument that begins with @ for the
// name of a file with arguments: subvolumes are called @home.
var noFileExpansion = sync.OnceFunc(func() { kingpin.EnableFileExpansion = false })

// run executes a command line until it is done or ctx is, and returns the exit
// status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	noFileExpansion()
	app := kingpin.New(programName, "Tells the truth about btrfs pools.")
	app.Version(version.Print(programName))
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout)
	app.ErrorWriter(stderr)
	// Kingpin wants to exit once it has shown the help or the version, and
	// otherwise goes on parsing.
	shown := false
	app.Terminate(func(int) {
		shown = true
		app.UsageWriter(io.Discard)
	})

	commands := map[string]func(context.Context, io.Writer, io.Writer) error{}
	serve := newServeCommand(app)
	commands[serve.name] = serve.run
	capacity := newCapacityCommand(app)
	commands[capacity.name] = capacity.run
	for _, c := range newScrubCommands(app) {
		commands[c.name] = c.run
	}
	for _, c := range newSnapshotCommands(app) {
		commands[c.name] = c.run
	}
	for _, c := range newExportCommands(app) {
		commands[c.name] = c.run
	}
	notifyTest := newNotifyTestCommand(app)
	commands[notifyTest.name] = notifyTest.run
	token := newTokenCommand(app)
	commands[token.name] = token.run

	if len(args) == 0 {
		return fail(stderr, fmt.Errorf("no command given; see %s --help", programName))
	}
	name, err := app.Parse(args)
	switch {
	case shown:
		return 0
	case err != nil:
		help := programName
		if command := app.GetCommand(args[0]); command != nil {
			help += " " + args[0]
			if len(args) > 1 && command.GetCommand(args[1]) != nil {
				help += " " + args[1]
			}
		}
		return fail(stderr, fmt.Errorf("%w; see %s --help", err, help))
	}
	err = commands[name](ctx, stdout, stderr)
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	if err != nil {
		return fail(stderr, err)
	}
	return 0
}

func fail(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "%s: %v\n", programName, err)
	return 1
}
