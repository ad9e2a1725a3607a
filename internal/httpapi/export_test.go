package httpapi

import (
	"net/http"
	"time"

	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// Routes are the methods and paths of the API.
func Routes() []string {
	var all []string
	for _, rt := range routes() {
		all = append(all, rt.method+" "+rt.path)
	}
	return all
}

// DecodeScrub decodes the parameters of a request for a scrub.
func DecodeScrub(w http.ResponseWriter, r *http.Request) (scrub.Options, bool, error) {
	p, err := readParameters(w, r)
	if err != nil {
		return scrub.Options{}, false, err
	}
	return p.scrubOptions(time.Unix(1.8e9, 0))
}
