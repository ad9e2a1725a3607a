//go:build linux

// Command benchscrape measures what a scrape costs, side by side with the
// btrfs collector of prometheus-node-exporter, on real pools that it makes for
// the purpose. `make bench` runs it. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == isolateFlag {
		fmt.Fprintf(os.Stderr, "benchscrape: %v\n", isolate(os.Args[2:]))
		os.Exit(1)
	}
	var o options
	flag.StringVar(&o.governor, "governor", "./btrfs-governor", "the btrfs-governor to measure")
	flag.StringVar(&o.nodeExporter, "node-exporter", "", "the node_exporter to compare with (default: Debian's, installed if missing)")
	flag.IntVar(&o.scrapes, "scrapes", 200, "scrapes of each exporter in each case")
	flag.IntVar(&o.blocks, "blocks", 10, "blocks that the scrapes are split into; the exporters take turns block by block")
	flag.IntVar(&o.walks, "walks", 50, "uncached readings of the pool of 20,000 block groups")
	flag.BoolVar(&o.check, "check", false, "fail if a figure is not within its limit")
	flag.Parse()
	if flag.NArg() > 0 || o.blocks < 1 || o.scrapes < o.blocks || o.walks < 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchscrape: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	governor, nodeExporter string
	scrapes, blocks, walks int
	check                  bool
}

// errMissed is what -check fails with.
var errMissed = errors.New("not all figures are within their limits")

func run(ctx context.Context, o options, out io.Writer) error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(out, "benchscrape makes real pools and needs root; skipped.")
		if o.check {
			return errMissed
		}
		return nil
	}
	if _, err := os.Stat(o.governor); err != nil {
		return fmt.Errorf("%w; build it with `make build`, or name it with -governor", err)
	}
	if o.nodeExporter == "" {
		path, err := findNodeExporter(out)
		if err != nil {
			return err
		}
		o.nodeExporter = path
	}
	var limits verdicts
	for _, c := range cases() {
		if err := c.run(ctx, o, out, &limits); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if !limits.print(out) && o.check {
		return errMissed
	}
	return nil
}

// verdicts collects the figures that have a limit.
type verdicts struct{ lines []verdict }

type verdict struct {
	what   string
	figure string
	limit  string
	within bool
}

func (v *verdicts) add(within bool, what, figure, limit string) {
	v.lines = append(v.lines, verdict{what, figure, limit, within})
}

// print reports whether all figures are within their limits.
func (v *verdicts) print(out io.Writer) bool {
	fmt.Fprintln(out, "Limits")
	rows := [][]string{{"", "measured", "limit", ""}}
	good := true
	for _, l := range v.lines {
		mark := "ok"
		if !l.within {
			mark, good = "MISSED", false
		}
		rows = append(rows, []string{l.what, l.figure, l.limit, mark})
	}
	printTable(out, rows)
	return good
}
