package collector

import "github.com/btrfs-governor/btrfs-governor/btrfs"

// PoolReading is what one reading learned of a pool.
type PoolReading struct {
	UUID  btrfs.UUID
	Label string // the last that is known, also of a pool that gives no answer
	Facts *Facts // nil where the pool gives no answer
	Err   error  // what could not be read
}

// Pools reads every pool that is exported, once, as a scrape does: with the
// same timeout and together with the scrapes that come meanwhile. The error is
// that of finding the pools; what was found is returned with it.
func (e *Exporter) Pools() ([]PoolReading, error) {
	readings, err := e.read()
	var pools []PoolReading
	seen := make(map[btrfs.UUID]bool)
	for r := range readings {
		if r.uuid.IsZero() || seen[r.uuid] || r.ignored {
			continue
		}
		seen[r.uuid] = true
		pools = append(pools, PoolReading{UUID: r.uuid, Label: r.label, Facts: r.facts, Err: r.err})
	}
	return pools, err
}
