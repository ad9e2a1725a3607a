package httpapi

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// The names of files are for those only who may command: who reaches the port
// sees how much was hit, and where on the devices.

// seesFiles reports whether a request may see the names of files.
func (a *api) seesFiles(r *http.Request) bool { return a.authorise(r) == nil }

// withoutFiles leaves the names of damaged files out of a scrub.
func withoutFiles(s scrub.Status) scrub.Status {
	if s.Damage == nil {
		return s
	}
	d := *s.Damage
	d.Errors = slices.Clone(d.Errors)
	for i := range d.Errors {
		d.Errors[i].Files = nil
	}
	s.Damage = &d
	return s
}

// jobWithoutFiles leaves them out of the result of a job.
func jobWithoutFiles(j job.Job) job.Job {
	if j.Result == nil {
		return j
	}
	if j.Kind == snapshot.KindCreate {
		return jobWithoutNested(j)
	}
	if j.Kind != "scrub" {
		return j
	}
	var s scrub.Status
	if err := json.Unmarshal(j.Result, &s); err != nil {
		j.Result = nil
		return j
	}
	text, err := json.Marshal(withoutFiles(s))
	if err != nil {
		text = nil
	}
	j.Result = text
	return j
}

// jobWithoutNested leaves out what lies within the subvolumes.
func jobWithoutNested(j job.Job) job.Job {
	var r snapshot.Result
	if err := json.Unmarshal(j.Result, &r); err != nil {
		j.Result = nil
		return j
	}
	for i := range r.Created {
		r.Created[i].Nested = nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		text = nil
	}
	j.Result = text
	return j
}

// eventWithoutFiles leaves them out of the data of an event.
func eventWithoutFiles(data any) any {
	switch v := data.(type) {
	case job.Job:
		return jobWithoutFiles(v)
	case scrub.Status:
		return withoutFiles(v)
	}
	return data
}
