package history

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	promapi "github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	promconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Timing and bounds of what is asked of a Prometheus.
const (
	refreshEach    = time.Minute     // and each answer; also how long a failure is waited after
	answerLife     = 5 * time.Minute // for which an answer is given that could not be had anew
	forgetAfter    = time.Hour       // what nobody asks for any more
	requestTimeout = 5 * time.Second
	maxQuestions   = 1024
	maxResponse    = 8 << 20
)

// Local is what is known without a Prometheus, see Store.
type Local interface {
	Samples(pool btrfs.UUID, since time.Time, most int) []Sample
	Forecast(pool btrfs.UUID) (Forecast, bool)
}

// Prometheus has the history of pools from a Prometheus. It answers at once with
// what was fetched last, and Run fetches what was asked for. Where there is no late
// answer, Local gives one.
type Prometheus struct {
	logger  log.Logger
	api     promv1.API
	address string // without a secret
	local   Local
	now     func() time.Time
	wake    chan struct{}

	// Those are of Run alone.
	failing bool
	notYet  time.Time // when it may be asked again after a failure

	mu      sync.Mutex
	answers map[question]*answer
}

// question is one for samples, or with a span of 0 one for a forecast.
type question struct {
	pool btrfs.UUID
	span time.Duration
	most int
}

type answer struct {
	asked, fetched time.Time
	samples        []Sample
	forecast       Forecast
	ok             bool
}

// CheckURL returns the URL of a Prometheus. The error does not repeat what was
// given: there may be a password in it.
func CheckURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("it is no URL such as http://127.0.0.1:9090")
	}
	return u, nil
}

// NewPrometheus returns the history that the Prometheus at a URL has. local is nil
// where nothing else is known.
func NewPrometheus(logger log.Logger, address *url.URL, local Local, now func() time.Time) (*Prometheus, error) {
	client, err := promconfig.NewClientFromConfig(promconfig.DefaultHTTPClientConfig, "prometheus", promconfig.WithUserAgent("btrfs-governor"))
	if err != nil {
		return nil, fmt.Errorf("make a client of Prometheus: %w", err)
	}
	client.Transport = boundedTransport{client.Transport}
	c, err := promapi.NewClient(promapi.Config{Address: address.String(), Client: client})
	if err != nil {
		return nil, fmt.Errorf("make a client of Prometheus: %w", err)
	}
	shown := *address
	shown.User = nil
	return &Prometheus{
		logger: logger, api: promv1.NewAPI(c), address: shown.String(), local: local, now: now,
		wake: make(chan struct{}, 1), answers: make(map[question]*answer),
	}, nil
}

// boundedTransport refuses the end of a response that is too large: the client
// would read it whole.
type boundedTransport struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxResponse)
	}
	return resp, err
}

// CloseIdleConnections lets the one of http.Client through.
func (t boundedTransport) CloseIdleConnections() {
	if c, ok := t.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Samples is that of Store.
func (p *Prometheus) Samples(pool btrfs.UUID, since time.Time, most int) []Sample {
	// The same question is asked again a moment later.
	span := max(p.now().Sub(since).Round(time.Minute), time.Minute)
	if most > 0 {
		if a, ok := p.ask(question{pool, min(span, Span), most}); ok && len(a.samples) > 0 {
			return slices.Clone(a.samples)
		}
	}
	if p.local == nil {
		return nil
	}
	return p.local.Samples(pool, since, most)
}

// Forecast is that of Store.
func (p *Prometheus) Forecast(pool btrfs.UUID) (Forecast, bool) {
	if a, ok := p.ask(question{pool: pool}); ok && a.ok && isFresh(a.forecast.Time, p.now()) {
		return a.forecast, true
	}
	if p.local == nil {
		return Forecast{}, false
	}
	return p.local.Forecast(pool)
}

// ask returns the last answer, if it is not too old, and has a newer one fetched.
func (p *Prometheus) ask(q question) (answer, bool) {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.answers[q]
	if a == nil {
		a = &answer{}
		if len(p.answers) < maxQuestions { // else when others were forgotten
			p.answers[q] = a
		}
	}
	a.asked = now
	if now.Sub(a.fetched) >= refreshEach {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return *a, now.Sub(a.fetched) < answerLife
}

// Run fetches what is asked for until ctx is done.
func (p *Prometheus) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
			p.fetchAll(ctx)
		}
	}
}

// fetchAll fetches what was asked for since it was fetched last, and forgets what
// nobody asks for.
func (p *Prometheus) fetchAll(ctx context.Context) {
	now := p.now()
	if now.Before(p.notYet) {
		return
	}
	var due []question
	p.mu.Lock()
	for q, a := range p.answers {
		switch {
		case now.Sub(a.asked) >= forgetAfter:
			delete(p.answers, q)
		case now.Sub(a.fetched) >= refreshEach && a.asked.After(a.fetched):
			due = append(due, q)
		}
	}
	p.mu.Unlock()
	for _, q := range due {
		a, err := p.fetch(ctx, q)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.notYet = p.now().Add(refreshEach)
			if !p.failing {
				level.Warn(p.logger).Log("msg", "Prometheus does not answer; until it does, the history of pools is the local one, if there is one", "url", p.address, "err", withoutURL(err))
			}
			p.failing = true
			return
		}
		if p.failing {
			level.Info(p.logger).Log("msg", "Prometheus answers again", "url", p.address)
		}
		p.failing = false
		p.mu.Lock()
		if known := p.answers[q]; known != nil {
			a.asked, a.fetched = known.asked, p.now()
			*known = a
		}
		p.mu.Unlock()
	}
}

// withoutURL leaves the URL out of an error: its user and its query are for nobody.
func withoutURL(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return failed.Err
	}
	return err
}

func (p *Prometheus) fetch(ctx context.Context, q question) (a answer, err error) {
	if q.span > 0 {
		width := Step * max(1, (q.span+Step*time.Duration(q.most)-1)/(Step*time.Duration(q.most)))
		a.samples, err = p.samples(ctx, q.pool, q.span, width)
		a.samples = a.samples[max(0, len(a.samples)-q.most):]
		return a, err
	}
	// The steps of the rule: of both its subqueries.
	samples, err := p.samples(ctx, q.pool, forecastSpan, 2*time.Hour)
	if err != nil {
		return a, err
	}
	a.forecast, a.ok = Predict(samples)
	recorded, err := p.query(ctx, fmt.Sprintf(`min by (__name__) ({__name__=~"btrfs:pool_(metadata_)?days_to_full",uuid=%q})`, q.pool))
	if err != nil {
		return a, err
	}
	// Where the rules are loaded, what they say is what alerts say.
	for _, r := range recorded {
		if !(r.Value >= 0) { // NaN is not either
			continue
		}
		a.ok, a.forecast.Time = true, r.Timestamp.Time().UTC()
		days := btrfs.Some(min(float64(r.Value), MaxDays)) // infinity is no JSON
		if r.Metric[model.MetricNameLabel] == "btrfs:pool_days_to_full" {
			a.forecast.DaysToFull = days
		} else {
			a.forecast.MetadataDaysToFull = days
		}
	}
	a.forecast.Source = SourcePrometheus
	return a, nil
}

// samples returns those at multiples of a width, and one of now.
func (p *Prometheus) samples(ctx context.Context, pool btrfs.UUID, span, width time.Duration) ([]Sample, error) {
	// A pool whose disks were moved to another host may be in two series.
	query := fmt.Sprintf(`max by (__name__) ({__name__=~"btrfs_pool_(used|free|free_expected|metadata_free|statfs_free)_bytes",uuid=%q})`, pool)
	samples := make(map[int64]*Sample)
	add := func(name model.LabelValue, at model.Time, v model.SampleValue) {
		if !(v >= 0 && v < math.MaxUint64) {
			return
		}
		s := samples[at.Unix()]
		if s == nil {
			s = &Sample{Time: time.Unix(at.Unix(), 0).UTC()}
			samples[at.Unix()] = s
		}
		known := btrfs.Some(uint64(v))
		switch strings.TrimSuffix(strings.TrimPrefix(string(name), "btrfs_pool_"), "_bytes") {
		case "used":
			s.Used = known
		case "free":
			s.Free = known
		case "free_expected":
			s.FreeExpected = known
		case "metadata_free":
			s.MetadataFree = known
		case "statfs_free":
			s.StatfsFree = known
		}
	}
	now := p.now()
	seconds := int64(width / time.Second)
	start := time.Unix((now.Add(-span).Unix()/seconds+1)*seconds, 0)
	if start.Before(now) {
		value, err := bounded(ctx, func(ctx context.Context) (model.Value, promv1.Warnings, promv1.Infos, error) {
			return p.api.QueryRange(ctx, query, promv1.Range{Start: start, End: now, Step: width})
		})
		if err != nil {
			return nil, err
		}
		matrix, ok := value.(model.Matrix)
		if !ok {
			return nil, fmt.Errorf("the answer to a query of a range is a %T", value)
		}
		for _, series := range matrix {
			for _, v := range series.Values {
				add(series.Metric[model.MetricNameLabel], v.Timestamp, v.Value)
			}
		}
	}
	vector, err := p.query(ctx, query)
	if err != nil {
		return nil, err
	}
	for _, v := range vector {
		add(v.Metric[model.MetricNameLabel], v.Timestamp, v.Value)
	}
	all := make([]Sample, 0, len(samples))
	for _, s := range samples {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Sample) int { return a.Time.Compare(b.Time) })
	return all, nil
}

func (p *Prometheus) query(ctx context.Context, query string) (model.Vector, error) {
	value, err := bounded(ctx, func(ctx context.Context) (model.Value, promv1.Warnings, promv1.Infos, error) {
		return p.api.Query(ctx, query, p.now())
	})
	if err != nil {
		return nil, err
	}
	vector, ok := value.(model.Vector)
	if !ok {
		return nil, fmt.Errorf("the answer to a query is a %T", value)
	}
	return vector, nil
}

// bounded makes a request that ends in time.
func bounded(ctx context.Context, request func(context.Context) (model.Value, promv1.Warnings, promv1.Infos, error)) (model.Value, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	value, _, _, err := request(ctx)
	return value, err
}
