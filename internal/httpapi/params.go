package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 64 << 10

// maxParameter bounds one parameter, in bytes.
const maxParameter = 4 << 10

// parameters are those of a request, from its query or its JSON body, each at
// most once. They are taken out one by one; what is left is unknown.
type parameters struct {
	values map[string]string
	known  []string
	bad    *problem // the first mistake
}

// readParameters reads the query and the body.
func readParameters(w http.ResponseWriter, r *http.Request) (*parameters, error) {
	p, err := readQuery(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, problemf(http.StatusRequestEntityTooLarge, "The body is larger than %d bytes.", maxBody)
	}
	if err != nil {
		return nil, problemf(http.StatusBadRequest, "The body cannot be read: %v.", err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return p, nil
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, problemf(http.StatusUnsupportedMediaType, "The body has the Content-Type %q; send JSON with -H 'Content-Type: application/json', or the parameters in the query.", r.Header.Get("Content-Type"))
	}
	return p, p.addJSON(body)
}

// readQuery reads the query alone.
func readQuery(r *http.Request) (*parameters, error) {
	p := &parameters{values: make(map[string]string)}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problemf(http.StatusBadRequest, "The query cannot be read: %v.", err)
	}
	for name, values := range query {
		if len(values) != 1 {
			return nil, problemf(http.StatusBadRequest, "Parameter %q is given %d times; give it once.", name, len(values))
		}
		p.values[name] = values[0]
	}
	return p, nil
}

// addJSON adds the members of a JSON object, whose values are single ones.
func (p *parameters) addJSON(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	wrong := func(err error) error {
		return problemf(http.StatusBadRequest, "The body is no JSON object of parameters such as {\"mode\":\"auto\"}: %v.", err)
	}
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return wrong(fmt.Errorf("it begins with %v", t))
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return wrong(err)
		}
		value, err := d.Token()
		if err != nil {
			return wrong(err)
		}
		key, _ := name.(string) // what else a key can be is an error of the decoder
		if _, twice := p.values[key]; twice {
			return problemf(http.StatusBadRequest, "Parameter %q is given a second time in the body; give it once.", key)
		}
		switch v := value.(type) {
		case string:
			p.values[key] = v
		case bool:
			p.values[key] = strconv.FormatBool(v)
		case json.Number:
			p.values[key] = v.String()
		default:
			return problemf(http.StatusBadRequest, "Parameter %q must be a text, a number, true or false.", key)
		}
	}
	if _, err := d.Token(); err != nil {
		return wrong(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return wrong(errors.New("something follows it"))
	}
	return nil
}

func (p *parameters) fail(name, format string, args ...any) {
	if p.bad == nil {
		p.bad = problemf(http.StatusBadRequest, "Parameter %q %s.", name, fmt.Sprintf(format, args...))
	}
}

// text takes a parameter out.
func (p *parameters) text(name string) (string, bool) {
	p.known = append(p.known, name)
	v, ok := p.values[name]
	delete(p.values, name)
	if len(v) > maxParameter {
		p.fail(name, "is longer than %d bytes", maxParameter)
		return "", false
	}
	return v, ok
}

// flag takes a parameter that is true or false; without a value, as in
// ?dry_run, it is true.
func (p *parameters) flag(name string) bool {
	switch v, given := p.text(name); {
	case !given, v == "false", v == "0":
		return false
	case v == "", v == "true", v == "1":
		return true
	default:
		p.fail(name, "must be true or false, not %q", v)
		return false
	}
}

// size takes a parameter such as 50MB or 4TiB, in bytes.
func (p *parameters) size(name string) uint64 {
	v, given := p.text(name)
	if !given {
		return 0
	}
	n, err := humanize.ParseBytes(v)
	if err != nil || n == 0 {
		p.fail(name, "must be a size such as 50MB or 4TiB, not %q", v)
	}
	return n
}

// moment takes a time: RFC 3339, or a duration from now such as 24h or 1d.
func (p *parameters) moment(name string, now time.Time) time.Time {
	v, given := p.text(name)
	if !given {
		return time.Time{}
	}
	// In a query a + that was not escaped means a space.
	if i := len(v) - len("+02:00"); i > 0 && v[i] == ' ' {
		v = v[:i] + "+" + v[i+1:]
	}
	// The zero time would mean none.
	if t, err := time.Parse(time.RFC3339, v); err == nil && t.Unix() > 0 {
		return t.UTC()
	}
	if d, err := model.ParseDuration(v); err == nil && d > 0 {
		return now.Add(time.Duration(d)).UTC()
	}
	p.fail(name, "must be a time such as 2026-12-24T03:00:00Z or a duration from now such as 24h, not %q", v)
	return time.Time{}
}

// done returns the first mistake; a parameter that nobody asked for is one.
func (p *parameters) done() error {
	if p.bad != nil {
		return p.bad
	}
	if len(p.values) == 0 {
		return nil
	}
	var unknown []string
	for name := range p.values {
		unknown = append(unknown, strconv.Quote(name))
	}
	slices.Sort(unknown)
	known := "none"
	if len(p.known) > 0 {
		known = strings.Join(p.known, ", ")
	}
	return problemf(http.StatusBadRequest, "Unknown parameter %s (known: %s).", strings.Join(unknown, ", "), known)
}

// scrubOptions takes what can be asked of a scrub.
func (p *parameters) scrubOptions(now time.Time) (o scrub.Options, dryRun bool, err error) {
	dryRun = p.flag("dry_run")
	mode, given := p.text("mode")
	o = scrub.Options{
		Mode: scrub.Mode(mode), Limit: p.size("limit"), ReadOnly: p.flag("read_only"),
		NotBefore: p.moment("not_before", now), Deadline: p.moment("deadline", now),
	}
	if !given {
		o.Mode = scrub.Auto
		if o.Limit > 0 {
			o.Mode = scrub.Limit
		}
	}
	if !o.Deadline.IsZero() && !o.Deadline.After(now) {
		p.fail("deadline", "is over (%s): give a later one", o.Deadline.Format(time.RFC3339))
	}
	if err := p.done(); err != nil {
		return o, dryRun, err
	}
	return o, dryRun, o.Validate()
}

// ParseScrubOptions reads the options of a scrub as the API takes them from a
// query.
func ParseScrubOptions(query url.Values, now time.Time) (scrub.Options, error) {
	p := &parameters{values: make(map[string]string)}
	for name := range query {
		p.values[name] = query.Get(name)
	}
	o, _, err := p.scrubOptions(now)
	return o, err
}
