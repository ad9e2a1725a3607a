package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// problem is an error answer (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail is a sentence that says what to do.
	Detail string `json:"detail"`
	// Job is the job that stands in the way, if one does.
	Job *job.Job `json:"job,omitempty"`
	// Candidates are the pools that an ambiguous name may mean.
	Candidates []string `json:"candidates,omitempty"`
}

// Error makes a problem an error.
func (p *problem) Error() string { return p.Detail }

func problemf(status int, format string, args ...any) *problem {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

func (p *problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	writeJSON(w, p.Status, p)
}

// writeJSON writes an answer. A Content-Type that is set stays.
func writeJSON(w http.ResponseWriter, status int, value any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // who hung up gets nothing
}

// problemOf finds the status of an error.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	switch {
	case errors.Is(err, scrub.ErrUnknownPool), errors.Is(err, job.ErrNotFound),
		errors.Is(err, snapshot.ErrUnknownPool), errors.Is(err, snapshot.ErrUnknown), errors.Is(err, btrfs.ErrUnmounted):
		return problemf(http.StatusNotFound, "%v.", err)
	case errors.Is(err, notify.ErrUnknownReceiver):
		return problemf(http.StatusNotFound, "%v: the configuration names the receivers, under notify.receivers.", err)
	case errors.Is(err, notify.ErrQueueFull):
		return problemf(http.StatusServiceUnavailable, "%v.", err) // Alertmanager sends it again
	case errors.Is(err, scrub.ErrRunning):
		return problemf(http.StatusConflict, "%v: look at it with GET, or end it with DELETE.", err)
	case errors.Is(err, scrub.ErrNotRunning):
		return problemf(http.StatusConflict, "%v: start one with POST to the pool's scrub.", err)
	case errors.Is(err, scrub.ErrForeign), errors.Is(err, scrub.ErrRefused), errors.Is(err, snapshot.ErrRefused):
		return problemf(http.StatusConflict, "%v.", err)
	case errors.Is(err, snapshot.ErrBusy), errors.Is(err, btrfs.ErrNoAnswer):
		return problemf(http.StatusServiceUnavailable, "%v.", err)
	case errors.Is(err, scrub.ErrInvalid), errors.Is(err, snapshot.ErrInvalid):
		return problemf(http.StatusBadRequest, "%v.", err)
	}
	return problemf(http.StatusInternalServerError, "%v.", err)
}
