package httpapi

import (
	"context"
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

// OverAPISocket makes a request one over the socket of the API.
func OverAPISocket(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), peerKey{}, "unix socket, uid 0, pid 1"))
}

// DecodeScrub decodes the parameters of a request for a scrub.
func DecodeScrub(w http.ResponseWriter, r *http.Request) (scrub.Options, bool, error) {
	p, err := readParameters(w, r)
	if err != nil {
		return scrub.Options{}, false, err
	}
	return p.scrubOptions(time.Unix(1.8e9, 0))
}

// SessionLength is for how long a session is good.
const SessionLength = sessionLength

// NewSession makes a session.
func (t *Token) NewSession(end time.Time) string { return t.newSession(end) }

// HasSession tells whether a session is good.
func (t *Token) HasSession(session string, now time.Time) bool { return t.hasSession(session, now) }

// MaxStreams is how many pages may be open.
const MaxStreams = maxStreams

// InTurn is inTurn.
var InTurn = inTurn
