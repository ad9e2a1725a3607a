package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// requestTimeout bounds each request, and with it how long a stop waits for one
// that is under way.
const requestTimeout = 15 * time.Second

// outcome is what became of an attempt.
type outcome int

const (
	delivered outcome = iota
	again             // it will pass by itself
	mend              // somebody has to mend the configuration first
	refused           // the service never takes this one
)

// answer is what a service said.
type answer struct {
	outcome outcome
	reason  string        // a sentence without secrets
	after   time.Duration // how long it asks to be left alone
	// unsure is set where it may have taken what it did not answer to.
	unsure bool
}

// encode is JSON as these services read it: < is itself, and so is shorter.
func encode(value any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSpace(text.Bytes()), err
}

// send makes one attempt.
func (s *service) send(ctx context.Context, n *notification) answer {
	req, err := s.request(ctx, n)
	if err != nil {
		return answer{outcome: refused, reason: "it cannot be written for " + string(s.kind) + ": " + s.redact(err.Error())}
	}
	resp, a := s.do(req)
	if resp == nil {
		return a
	}
	defer resp.Body.Close()
	return s.judge(resp)
}

// request writes a notification for the service.
func (s *service) request(ctx context.Context, n *notification) (*http.Request, error) {
	var (
		body []byte
		err  error
	)
	u := s.url
	switch s.kind {
	case Ntfy:
		// JSON goes to the root of the server, and names the topic.
		body, err = s.ntfy(n)
	case Gotify:
		u = u.JoinPath("message")
		body, err = s.gotify(n)
	case Discord:
		// wait has it answer when the message is there, and not before.
		withWait := *u
		query := u.Query()
		query.Set("wait", "true")
		withWait.RawQuery = query.Encode()
		u = &withWait
		body, err = s.discord(n)
	}
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

func (s *service) authorise(req *http.Request) {
	req.Header.Set("User-Agent", s.userAgent)
	switch {
	case s.token == "":
	case s.kind == Gotify:
		req.Header.Set("X-Gotify-Key", s.token)
	default:
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
}

// do sends a request. Without a response the answer says why.
func (s *service) do(req *http.Request) (*http.Response, answer) {
	s.authorise(req)
	// Without a connection it cannot have arrived.
	var connected atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }}
	resp, err := s.client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err == nil {
		return resp, answer{}
	}
	// Its text has the URL, which is a secret.
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	reason := err.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		reason = fmt.Sprintf("no answer within %s", requestTimeout)
	}
	return nil, answer{outcome: again, unsure: connected.Load(), reason: fmt.Sprintf("%s cannot be reached: %s", s.kind, s.redact(clean(reason)))}
}

// maxAnswer bounds what is read of an answer, and maxReason what is shown of it.
const (
	maxAnswer = 64 << 10
	maxReason = 200
)

// judge says what a response means.
func (s *service) judge(resp *http.Response) answer {
	// With a status that says it arrived, the rest does not matter.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	a := answer{reason: fmt.Sprintf("%s answered %d %s", s.kind, resp.StatusCode, http.StatusText(resp.StatusCode)), after: retryAfter(resp.Header)}
	if text := s.redact(clean(string(body))); text != "" {
		a.reason += ": " + cut(text, maxReason, utf16Length)
	}
	switch code := resp.StatusCode; {
	case code/100 == 2 && strings.HasPrefix(strings.TrimSpace(string(body)), "<"):
		// The page of a proxy or a hotspot says 200 as well, and has lost it.
		a.outcome, a.reason = mend, fmt.Sprintf("what answers is a web page and not %s; look at url", s.kind)
	case code/100 == 2:
		a.outcome = delivered
		a.after = discordPause(resp.Header)
	case code/100 == 3:
		a.outcome, a.reason = mend, fmt.Sprintf("%s answered %d and redirects elsewhere, which is not followed; put the final address into url", s.kind, code)
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
		a.outcome = again
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound, code == http.StatusMethodNotAllowed,
		code == http.StatusProxyAuthRequired, code == http.StatusLengthRequired, code == http.StatusMisdirectedRequest:
		// They say nothing of the message: who sends it, to where, or what is on
		// the way has to change.
		a.outcome = mend
	case code/100 == 4 && s.kind.refuses(body):
		a.outcome = refused
	case code/100 == 4:
		a.outcome = mend
	default:
		// What stands before it may have lost the answer.
		a.outcome, a.unsure = again, true
	}
	return a
}

// refuses reports whether the body of an answer is an error of the service itself.
// A proxy, or a port that wants https, answers 400 as well and never asked it.
func (k Kind) refuses(body []byte) bool {
	var object map[string]json.RawMessage
	if json.Unmarshal(body, &object) != nil {
		return false
	}
	switch k {
	case Ntfy: // docs.ntfy.sh/publish/#limitations shows one: {"code":42901,"http":429,"error":…}
		return object["code"] != nil && object["http"] != nil
	case Gotify: // gotify.net/api-docs, Error
		return object["errorCode"] != nil
	default: // of Discord they may have the names of the wrong fields as keys
		return len(object) > 0
	}
}

// maxRetryAfter bounds how long a service may ask to be left alone.
const maxRetryAfter = time.Hour

// retryAfter reads how long to wait, in seconds or as a date (RFC 9110, section
// 10.2.3).
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 {
		return time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	if t, err := http.ParseTime(text); err == nil {
		// By the clock of the service, if it says so.
		now, err := http.ParseTime(h.Get("Date"))
		if err != nil {
			return 0
		}
		return max(0, min(t.Sub(now), maxRetryAfter))
	}
	return 0
}

// discordPause is how long Discord wants to be left alone after the last message
// that it took (discord.com/developers/docs/topics/rate-limits).
func discordPause(h http.Header) time.Duration {
	seconds, err := strconv.ParseFloat(h.Get("X-RateLimit-Reset-After"), 64)
	if err != nil || h.Get("X-RateLimit-Remaining") != "0" || !(seconds > 0) {
		return 0
	}
	return time.Duration(min(seconds, time.Minute.Seconds()) * float64(time.Second))
}

// look asks whether a notification of some age has arrived. An outcome of again is
// that it cannot be known now, and any other that it cannot be found out.
func (s *service) look(ctx context.Context, id string, age time.Duration) (found bool, a answer) {
	req, err := s.ntfyLook(ctx, age)
	if err != nil {
		return false, answer{outcome: refused, reason: s.redact(err.Error())}
	}
	resp, a := s.do(req)
	if resp == nil {
		return false, a
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		a := s.judge(resp)
		if a.outcome == delivered {
			a.outcome = refused
		}
		return false, a
	}
	return ntfyHas(resp.Body, id), answer{}
}
