//go:build linux

// Command demo shows btrfs-governor at work on a pool of four mismatched
// drives that it makes out of sparse files, until it is interrupted. `make
// demo` runs it. Where it cannot make pools it serves recorded ones.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	var o options
	flag.StringVar(&o.governor, "governor", "./btrfs-governor", "the btrfs-governor to run; built if there is none")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:10134", "address to serve on; another port if it is taken")
	flag.StringVar(&o.recorded, "recorded", "testdata/pools", "recorded pools to serve where none can be made")
	flag.StringVar(&o.stack, "stack", stackAuto, "start Prometheus and Alertmanager too: on, off, or auto: where they are installed, or may be downloaded")
	flag.BoolVar(&o.verify, "verify", false, "fill the pool to see how much really fits")
	flag.Parse()
	if flag.NArg() > 0 || o.stack != stackAuto && o.stack != stackOn && o.stack != stackOff {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, o, os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	governor, listen, recorded, stack string
	verify                            bool
}

// run shows the demonstration until ctx is done, and leaves nothing behind.
func run(ctx context.Context, o options, in *os.File, out io.Writer) error {
	if err := buildGovernor(ctx, o.governor, out); err != nil {
		return err
	}
	missing := missingForPools(ctx, out)
	if ctx.Err() != nil {
		return nil
	}
	if missing == "" {
		return showPool(ctx, o, in, out)
	}
	fmt.Fprintf(out, "%s: serving the pools recorded in %s instead.\n\n", missing, o.recorded)
	return unlessInterrupted(ctx, showRecorded(ctx, o, out))
}

// showPool makes the pool and shows it.
func showPool(ctx context.Context, o options, in *os.File, out io.Writer) (err error) {
	fmt.Fprintln(out, "Making a pool of four drives out of sparse files; they take no space.")
	demo, err := newDemoPool(ctx)
	if demo != nil {
		defer func() {
			err = errors.Join(err, demo.rig.Close())
			if err == nil {
				fmt.Fprintln(out, "Everything is removed.")
			}
		}()
	}
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	config, err := onlyPool(demo.pool.UUID)
	if err != nil {
		return err
	}
	configFile := filepath.Join(demo.rig.Dir(), "config.yml")
	if err := os.WriteFile(configFile, []byte(config), 0o600); err != nil {
		return err
	}
	server, err := startServer(ctx, o, out, "--config.file="+configFile)
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	defer server.end()
	if err := demo.print(ctx, server, out); err != nil {
		return unlessInterrupted(ctx, err)
	}
	if o.verify {
		if err := demo.verify(ctx, server, out); err != nil {
			return unlessInterrupted(ctx, err)
		}
	}
	// What a killed demonstration leaves in the directory of its rig, the next one
	// removes.
	dir := filepath.Join(demo.rig.Dir(), "stack")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	stack, err := findStack(ctx, o, dir, in, out)
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	if stack != nil {
		defer func() { err = errors.Join(err, stack.end()) }()
		if err := stack.start(ctx, demo.rig, o, out); err != nil {
			return unlessInterrupted(ctx, err)
		}
		stack.printURLs(out)
	}
	server.printURLs(out, demo.pool.UUID)
	return server.wait(ctx, out)
}

// unlessInterrupted drops an error that came after the interruption: Ctrl-C
// reaches the programs that are running as well.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// showRecorded serves the recorded pools.
func showRecorded(ctx context.Context, o options, out io.Writer) error {
	if _, err := os.Stat(o.recorded); err != nil {
		return fmt.Errorf("%w; run it in the checkout, or name the directory with -recorded", err)
	}
	server, err := startServer(ctx, o, out, "--config.file=/dev/null", "--path.recorded="+o.recorded)
	if err != nil {
		return err
	}
	defer server.end()
	if err := printRecorded(ctx, server, out); err != nil {
		return err
	}
	server.printURLs(out, "")
	return server.wait(ctx, out)
}
