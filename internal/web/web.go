// Package web draws the status page: what is known of the pools, as HTML that
// needs no JavaScript and asks nobody else for anything.
//
// What is shown is worked out by pure functions (Build, Findings, WhatIf); the
// templates only lay it out. A page is made of sections, each of which can be
// drawn by itself, so that a live page replaces only what changed.
package web

import (
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// Input is what is known of one pool.
type Input struct {
	Reading collector.PoolReading
	// Read is when the facts were read. Silent is since when the pool gives none, for
	// the reason that is the error of the reading; zero where it does.
	Read, Silent time.Time
	// Scrub is nil where no scrubs are run.
	Scrub *scrub.Status
	// Snapshots is nil where nothing is known of them.
	Snapshots *snapshot.Overview
	// History are samples, the oldest first.
	History []history.Sample
	// Hour are those of the last hour, whatever else was left out.
	Hour     []history.Sample
	Forecast *history.Forecast // nil where there is none
	// Errors are the error counters as they were last remembered, by the ids of the
	// devices.
	Errors map[uint64]history.DeviceErrors
}

// Control is what whoever looks at the page may do.
type Control int

// What may be done.
const (
	// ReadOnly: nobody may change anything.
	ReadOnly Control = iota
	// Insecure: not over this connection, which could be listened to.
	Insecure
	// Locked: with the token, which is asked for.
	Locked
	// Unlocked: the token was given. Names of files are shown too.
	Unlocked
)

// Buttons tells whether there are any.
func (c Control) Buttons() bool { return c == Locked || c == Unlocked }

// Files tells whether the names of files are shown.
func (c Control) Files() bool { return c == Unlocked }

// Severity of a finding, as alerts have it.
type Severity int

// The severities, the worse the greater.
const (
	Good Severity = iota
	Info
	Warning
	Critical
)

// String returns the word for it, which is also its class in the style sheet.
func (s Severity) String() string { return [...]string{"good", "info", "warning", "critical"}[s] }

// Symbol is for those who cannot tell the colours apart.
func (s Severity) Symbol() string { return [...]string{"✓", "i", "!", "✕"}[s] }

// Finding is something that somebody should know, in a sentence.
type Finding struct {
	Severity Severity
	Text     string
	// Runbook is where it stands what to do.
	Runbook string
}

// poolName is what a pool is called: its label, or else where it is mounted.
func poolName(uuid btrfs.UUID, label, mountpoint string) string {
	switch {
	case label != "":
		return label
	case mountpoint != "":
		return mountpoint
	}
	return uuid.String()[:8]
}
