package main

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
)

// adviceOf returns what says what a balance of a pool would give back.
func adviceOf(exporter *collector.Exporter) func(btrfs.UUID) (alertmanager.Advice, error) {
	return func(uuid btrfs.UUID) (alertmanager.Advice, error) {
		readings, err := exporter.Pools()
		for i := range readings {
			r := &readings[i]
			if r.UUID != uuid {
				continue
			}
			if r.Facts == nil || r.Facts.Report == nil {
				return alertmanager.Advice{}, errors.Join(fmt.Errorf("pool %s: its capacity is not known", uuid), r.Err)
			}
			return advise(r.Facts), nil
		}
		if err != nil { // it may be there all the same
			return alertmanager.Advice{}, fmt.Errorf("pool %s: %w", uuid, err)
		}
		return alertmanager.Advice{}, fmt.Errorf("pool %s: %w", uuid, alertmanager.ErrNoPool)
	}
}

// leastGain is from what share of a pool's usable space on a balance is advised:
// it reads and writes all data.
const leastGain = 0.02

// advise says what a balance would give back.
func advise(facts *collector.Facts) alertmanager.Advice {
	r := facts.Report
	a := alertmanager.Advice{
		FreeBytes: r.Free, FreeAfterBalanceBytes: r.FreeAfterBalance,
		Command: "btrfs balance start -d " + shellQuote(facts.Pool.Mountpoint),
	}
	name := facts.Pool.Label
	if name == "" {
		name = facts.Pool.UUID.String()
	}
	gain := r.FreeAfterBalance - min(r.Free, r.FreeAfterBalance)
	if float64(gain) < leastGain*float64(r.Usable) {
		a.Command = ""
		a.Text = fmt.Sprintf("A balance of pool %s would give back %s of %s, which is not worth it.", name, humanize.IBytes(gain), humanize.IBytes(r.Usable))
		return a
	}
	a.Text = fmt.Sprintf("A balance of pool %s would give back %s: %s are free, and %s afterwards. It reads and writes all data; begin it at a quiet time with: %s",
		name, humanize.IBytes(gain), humanize.IBytes(r.Free), humanize.IBytes(r.FreeAfterBalance), a.Command)
	return a
}

// shellQuote quotes a path where a shell would take it for something else.
func shellQuote(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+@:", r)
	}) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
