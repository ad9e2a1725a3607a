// Package dashboards holds the dashboards for Grafana 10 and later. The files that
// are committed are written by this package, so that their thresholds are those of
// the alerting rules.
package dashboards

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"

	"github.com/btrfs-governor/btrfs-governor/alerts"
)

// Files has the dashboards, see Names.
//
//go:embed fleet.json pool.json
var Files embed.FS

// Names returns the names of the files, sorted.
func Names() []string { return []string{fleetFile, poolFile} }

const (
	fleetFile = "fleet.json"
	poolFile  = "pool.json"
)

// Their UIDs stand in links and bookmarks.
const (
	fleetUID = "btrfs-governor-fleet"
	poolUID  = "btrfs-governor-pool"
)

// Dashboards returns the files with these thresholds, by their names.
func Dashboards(t alerts.Thresholds) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for name, d := range map[string]*dashboard{fleetFile: fleet(&t), poolFile: pool(&t)} {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(d); err != nil {
			return nil, fmt.Errorf("dashboard %s: %w", name, err)
		}
		files[name] = b.Bytes()
	}
	return files, nil
}

// The palette of Okabe and Ito, which colour-blind people can tell apart
// (jfly.uni-koeln.de/color), without its yellow and black: one is lost on a white
// ground, the other on a dark one. Grey is for what is no news.
const (
	orange        = "#E69F00"
	skyBlue       = "#56B4E9"
	bluishGreen   = "#009E73"
	blue          = "#0072B2"
	vermillion    = "#D55E00"
	reddishPurple = "#CC79A7"
	grey          = "#999999"
)

// What colours stand for. Where one does, there is a text or a number too.
const (
	good     = bluishGreen
	info     = skyBlue
	warning  = orange
	critical = vermillion
)
