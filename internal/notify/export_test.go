package notify

import (
	"context"
	"net/http"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
)

// Request returns the request that would send a message, as it comes from the disk.
func Request(r *Receiver, m *alertmanager.Message) (*http.Request, error) {
	s, err := r.service("1.2.3")
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, err
	}
	e, err := newEntry(r.Name, m, time.Now())
	if err != nil {
		return nil, err
	}
	kept, out, err := e.message()
	if err != nil {
		return nil, err
	}
	n, err := s.notification(e.id, kept, out)
	if err != nil {
		return nil, err
	}
	req, err := s.request(context.Background(), n)
	if err == nil {
		s.authorise(req)
	}
	return req, err
}
