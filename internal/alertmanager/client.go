package alertmanager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"github.com/prometheus/common/config"
)

// maxListBytes bounds a list of silences, and maxAnswerBytes any other answer. One
// silence has about 600 bytes; those of the last five days are listed too.
const (
	maxListBytes   = 16 << 20
	maxAnswerBytes = 64 << 10
)

// peer talks with one Alertmanager.
type peer struct {
	name    string // for people: without path and secrets
	base    *url.URL
	client  *http.Client
	timeout time.Duration // of a request with its answer
	count   func(error)   // is told how each request went
	skewed  bool          // its clock differs from ours, and that was said
}

func newPeer(p *Peer, timeout time.Duration, count func(error)) (*peer, error) {
	base, err := p.base()
	if err != nil {
		return nil, err
	}
	settings := p.HTTP
	if err := settings.Validate(); err != nil {
		return nil, fmt.Errorf("http_config: %w", err)
	}
	settings.FollowRedirects = false // they would carry our credentials elsewhere
	client, err := config.NewClientFromConfig(settings, "alertmanager", config.WithUserAgent("btrfs-governor"))
	if err != nil {
		return nil, fmt.Errorf("http_config: %w", err)
	}
	return &peer{name: base.Scheme + "://" + base.Host, base: base, client: client, timeout: timeout, count: count}, nil
}

// errNotFound is returned for a silence that the Alertmanager does not know.
var errNotFound = errors.New("it does not know the silence")

// refusedError is an answer that is no success. Another silence may fare better.
type refusedError struct {
	status  int
	message string
}

func (e *refusedError) Error() string {
	text := fmt.Sprintf("it answers %d %s", e.status, http.StatusText(e.status))
	switch {
	case e.status >= 300 && e.status < 400:
		text += ": redirects are not followed; give the address that it redirects to"
	case e.status == http.StatusUnauthorized || e.status == http.StatusForbidden:
		text += ": look at http_config"
	case e.status == http.StatusNotFound:
		text += ": look at the path of the url (--web.route-prefix)"
	case e.message != "":
		text += fmt.Sprintf(": %.200q", e.message)
	}
	return text
}

// silences returns the silences that were created by one, and what time it is
// there; zero where it does not say.
func (p *peer) silences(ctx context.Context, createdBy string) (list []silence, now time.Time, err error) {
	now, err = p.do(ctx, http.MethodGet, "silences", nil, maxListBytes, func(answer *json.Decoder) error {
		if t, err := answer.Token(); err != nil || t != json.Delim('[') {
			return errors.New("its answer is no list")
		}
		for answer.More() {
			var s silence
			if err := answer.Decode(&s); err != nil {
				return fmt.Errorf("its list of silences cannot be read: %w", err)
			}
			if s.CreatedBy != createdBy {
				continue
			}
			if err := checkID(s.ID); err != nil {
				return err
			}
			list = append(list, s)
		}
		if _, err := answer.Token(); err != nil {
			return fmt.Errorf("its list of silences is not whole: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, now, fmt.Errorf("list the silences: %w", err)
	}
	return list, now, nil
}

// post writes a silence and returns its id, which is another one where the old
// one was expired meanwhile.
func (p *peer) post(ctx context.Context, s *postableSilence) (id string, err error) {
	_, err = p.do(ctx, http.MethodPost, "silences", s, maxAnswerBytes, func(answer *json.Decoder) error {
		var created struct {
			SilenceID string `json:"silenceID"`
		}
		if err := answer.Decode(&created); err != nil {
			return fmt.Errorf("its answer cannot be read: %w", err)
		}
		id = created.SilenceID
		return checkID(id)
	})
	if err != nil {
		return "", fmt.Errorf("write a silence: %w", err)
	}
	return id, nil
}

// expire ends a silence. One that is not there has ended.
func (p *peer) expire(ctx context.Context, id string) error {
	_, err := p.do(ctx, http.MethodDelete, "silence/"+id, nil, maxAnswerBytes, func(*json.Decoder) error { return nil })
	if err != nil && !errors.Is(err, errNotFound) {
		return fmt.Errorf("expire silence %s: %w", id, err)
	}
	return nil
}

// idPattern is of what Alertmanager gives as an id, a UUID, and of nothing that
// would change the path of a request.
var idPattern = regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`)

func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("it gives %.40q as the id of a silence", id)
	}
	return nil
}

// do sends a request and has read look at the answer of a success. It returns the
// time of the answer by the clock of the other side.
func (p *peer) do(ctx context.Context, method, path string, body any, limit int64, read func(*json.Decoder) error) (now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	defer func() {
		// Within an answer net/http tells of a closed connection only.
		if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it does not answer in time: %w", err)
		}
		p.count(err)
	}()
	var text []byte
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			return now, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base.JoinPath("api/v2/"+path).String(), bytes.NewReader(text))
	if err != nil {
		return now, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		// The error of net/http repeats the URL.
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err
		}
		return now, err
	}
	defer resp.Body.Close()
	now, _ = http.ParseTime(resp.Header.Get("Date"))
	if resp.StatusCode/100 != 2 {
		limit = maxAnswerBytes
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if resp.StatusCode/100 == 2 {
		switch {
		case err != nil:
			return now, fmt.Errorf("its answer is not whole: %w", err)
		case int64(len(answer)) > limit:
			return now, fmt.Errorf("its answer is larger than %d bytes", limit)
		}
		return now, read(json.NewDecoder(bytes.NewReader(answer)))
	}
	refused := &refusedError{status: resp.StatusCode}
	// Alertmanager gives its reason as a string of JSON, or as the message of an
	// object; anything else is of somebody else and not repeated.
	if err == nil && json.Unmarshal(answer, &refused.message) != nil {
		var object struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(answer, &object) == nil {
			refused.message = object.Message
		}
	}
	// A 404 for a silence says that this one is not known; for the list it says
	// that there is no such API.
	if resp.StatusCode == http.StatusNotFound && method != http.MethodGet {
		return now, errNotFound
	}
	return now, refused
}
