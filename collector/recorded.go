package collector

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
)

// NewRecordedSource returns the pools recorded as JSON files in a directory,
// for a demonstration without btrfs and for tests. Files that are not named
// *.json are passed over.
func NewRecordedSource(dir string) (Source, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("recorded pools: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("recorded pools: %s is not a directory", dir)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("recorded pools in %s: %w", dir, err)
	}
	s := &recordedSource{pools: make(map[btrfs.UUID]*Facts)}
	for _, name := range names {
		f, err := readRecorded(name)
		if err != nil {
			return nil, fmt.Errorf("recorded pool %s: %w", name, err)
		}
		if s.pools[f.Pool.UUID] != nil {
			return nil, fmt.Errorf("recorded pool %s: pool %s is recorded twice in %s", name, f.Pool.UUID, dir)
		}
		s.pools[f.Pool.UUID] = f
		s.mounts = append(s.mounts, btrfs.Mount{UUID: f.Pool.UUID})
	}
	return s, nil
}

func readRecorded(name string) (*Facts, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var p btrfs.Pool
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, err
	}
	return NewFacts(&p)
}

// NewFacts works out the facts of a recorded pool.
func NewFacts(p *btrfs.Pool) (*Facts, error) {
	l, err := capacity.NewLayout(p)
	if err != nil {
		return nil, err
	}
	d := newDerived(l)
	report, err := capacity.Calculate(p, l)
	if err != nil {
		return nil, err
	}
	return &Facts{Pool: p, Layout: l, Report: report, WorstPair: d.worstPair, Spread: d.spread}, nil
}

type recordedSource struct {
	mounts []btrfs.Mount
	pools  map[btrfs.UUID]*Facts
}

func (s *recordedSource) Mounts() ([]btrfs.Mount, error)      { return s.mounts, nil }
func (s *recordedSource) Reader() PoolReader                  { return s }
func (s *recordedSource) Read(m *btrfs.Mount) (*Facts, error) { return s.pools[m.UUID], nil }
