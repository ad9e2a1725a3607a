//go:build linux

// Command benchscrub measures what a scrub does to those who use the pool, and
// what giving way costs the scrub: on a RAID1 of two emulated hard disks that
// it makes for the purpose, with five kinds of users, without a scrub, with
// `btrfs scrub start`, with that under a fixed limit, and with ours.
// `make bench-scrub` runs it. It needs root and FUSE.
//
// Three kinds of processes keep out of each other's way: this one serves the
// disks, and the users and our scrub run in children of it. That also ends
// them well: a process that scrubbed a disk which it serves itself could not
// be killed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The roles of a child, each its first argument.
const (
	roleForeground = "-as-foreground"
	roleOurs       = "-as-ours"
)

func main() {
	if len(os.Args) == 3 {
		var role func(config string) error
		switch os.Args[1] {
		case roleForeground:
			role = beForeground
		case roleOurs:
			role = beOurs
		}
		if role != nil {
			if err := role(os.Args[2]); err != nil {
				fmt.Fprintf(os.Stderr, "%v\n", err)
				os.Exit(1)
			}
			return
		}
	}
	var o options
	flag.IntVar(&o.Repeat, "repeat", 1, "how often everything is measured")
	flag.IntVar(&o.Seconds, "seconds", 60, "length of each measurement with a foreground, in seconds; the film and the bursts, of few requests, run twice as long")
	flag.StringVar(&o.Only, "only", "", "measure only these, separated by commas: "+strings.Join(partNames(), ", "))
	flag.StringVar(&o.Scrubs, "scrubs", "", "measure only with these, separated by commas: "+strings.Join(scrubNames(), ", "))
	flag.IntVar(&o.DataMiB, "data", 3072, "data on each disk, in MiB")
	flag.BoolVar(&o.json, "json", false, "print everything that was measured as JSON")
	flag.BoolVar(&o.check, "check", false, "fail if a figure is not within its limit")
	flag.BoolVar(&o.verbose, "v", false, "tell what our scrub says about itself")
	flag.Parse()
	if flag.NArg() > 0 || o.Repeat < 1 || o.Seconds < 3 || o.DataMiB < 64 ||
		!subset(o.Only, partNames()) || !subset(o.Scrubs, scrubNames()) {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchscrub: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	Repeat  int    `json:"repeat"`
	Seconds int    `json:"seconds"`
	Only    string `json:"only,omitempty"`
	Scrubs  string `json:"scrubs,omitempty"`
	DataMiB int    `json:"data_mib"`

	json, check, verbose bool
}

// partIdle is the part without a foreground.
const partIdle = "idle"

func partNames() []string {
	names := []string{partIdle}
	for _, f := range foregrounds() {
		names = append(names, f.Name)
	}
	return names
}

// subset reports whether a list separated by commas holds only known names.
func subset(list string, known []string) bool {
	for name := range strings.SplitSeq(list, ",") {
		if list != "" && !slices.Contains(known, name) {
			return false
		}
	}
	return true
}

// chosen reports whether a list separated by commas holds a name. The empty
// list stands for all.
func chosen(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

// errMissed is what -check fails with.
var errMissed = errors.New("not all figures are within their limits")

func run(ctx context.Context, o options, out, progress io.Writer) error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(progress, "benchscrub makes real pools and needs root; skipped.")
		if o.check {
			return errMissed
		}
		return nil
	}
	r := results{Options: o, Began: time.Now()}
	err := measureAll(ctx, o, &r, progress)
	r.judge()
	if o.json {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = errors.Join(err, encoder.Encode(&r))
	} else {
		r.print(out)
	}
	if err == nil && o.check && !r.passed() {
		return errMissed
	}
	return err
}
