package history

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Timing and bounds of what is asked of a Prometheus.
const (
	refreshEach    = time.Minute     // and each answer; also how long a failure is waited after
	answerLife     = 5 * time.Minute // for which an answer is given that could not be had anew
	forgetAfter    = time.Hour       // what nobody asks for any more
	requestTimeout = 5 * time.Second
	maxQuestions   = 32 // of each pool
	maxResponse    = 8 << 20
)

// Local is what is known without a Prometheus, see Store.
type Local interface {
	Samples(pool btrfs.UUID, since time.Time, most int) []Sample
	Forecast(pool btrfs.UUID) (Forecast, bool)
}

// spanDays are for how many days Prometheus is asked: for those that have what
// somebody wants to see, of which the rest is left out. There are few of them, and so
// few questions, whatever anybody asks for. 90 are those of the status page.
var spanDays = [...]int{1, 2, 4, 7, 14, 30, 60, 90, 180, 400}

// spanMore is what is asked for beyond whole days: the clock may have been put
// forward meanwhile, or be looked at twice.
const spanMore = 2 * time.Hour

// PrometheusConfig is what NewPrometheus needs.
type PrometheusConfig struct {
	Logger log.Logger
	// URL is that of a Prometheus, see CheckURL.
	URL *url.URL
	// Client makes the requests. It follows no redirect, see httpclient.New.
	Client *http.Client
	// Pools are those of this machine. Of others nothing is asked.
	Pools Pools
	// Local is nil where nothing else is known.
	Local Local
	Now   func() time.Time
}

// Prometheus has the history of pools from a Prometheus. It answers at once with
// what was fetched last, and Run fetches what was asked for: one request at a time,
// and the same one not twice. Where there is no late answer, Local gives one.
type Prometheus struct {
	logger  log.Logger
	api     promv1.API
	address string
	found   Pools
	local   Local
	now     func() time.Time
	wake    chan struct{}

	// Those are of Run alone.
	failing bool
	notYet  time.Time // when it may be asked again after a failure

	mu    sync.Mutex
	pools map[btrfs.UUID]*remotePool
}

// remotePool is what is remembered of a pool that was asked for.
type remotePool struct {
	here    bool // it is one of this machine
	answers map[question]*answer
}

// question is one for samples, or with a span of 0 one for a forecast.
type question struct {
	span time.Duration
	most int
}

type answer struct {
	asked, fetched time.Time
	failed         time.Time // when it was last asked of Prometheus in vain
	refused        bool      // and that Prometheus refused it
	samples        []Sample
	forecast       Forecast
	ok             bool
}

// CheckURL returns the URL of a Prometheus. The error does not repeat what was
// given: there may be a password in it.
func CheckURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err == nil && u.User != nil {
		return nil, errors.New("it must have no user and no password, for whoever may list processes sees them: put them under basic_auth into a file that --prometheus.http-config names")
	}
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("it is no URL such as http://127.0.0.1:9090")
	}
	return u, nil
}

// NewPrometheus returns the history that a Prometheus has.
func NewPrometheus(cfg PrometheusConfig) (*Prometheus, error) {
	client := *cfg.Client
	client.Transport = boundedTransport{client.Transport}
	c, err := promapi.NewClient(promapi.Config{Address: cfg.URL.String(), Client: &client})
	if err != nil {
		return nil, fmt.Errorf("make a client of Prometheus: %w", err)
	}
	return &Prometheus{
		logger: cfg.Logger, api: promv1.NewAPI(c), address: cfg.URL.String(), found: cfg.Pools, local: cfg.Local, now: cfg.Now,
		wake: make(chan struct{}, 1), pools: make(map[btrfs.UUID]*remotePool),
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
	if most > 0 {
		if a, ok := p.ask(pool, question{spanOf(p.now().Sub(since)), most}); ok {
			first, _ := slices.BinarySearchFunc(a.samples, since, func(s Sample, t time.Time) int { return s.Time.Compare(t) })
			if first < len(a.samples) {
				return slices.Clone(a.samples[first:])
			}
		}
	}
	if p.local == nil {
		return nil
	}
	return p.local.Samples(pool, since, most)
}

// spanOf returns for how long Prometheus is asked where somebody wants to see so
// long.
func spanOf(wanted time.Duration) time.Duration {
	for _, days := range spanDays {
		if span := time.Duration(days)*24*time.Hour + spanMore; span >= wanted {
			return span
		}
	}
	return Span
}

// Forecast is that of Store.
func (p *Prometheus) Forecast(pool btrfs.UUID) (Forecast, bool) {
	if a, ok := p.ask(pool, question{}); ok && a.ok && isFresh(a.forecast.Time, p.now()) {
		return a.forecast, true
	}
	if p.local == nil {
		return Forecast{}, false
	}
	return p.local.Forecast(pool)
}

// ask returns the last answer, if it is not too old, and has a newer one fetched.
func (p *Prometheus) ask(pool btrfs.UUID, q question) (answer, bool) {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.pools[pool]
	if known == nil {
		if len(p.pools) >= maxPools {
			return answer{}, false // until others were forgotten
		}
		known = &remotePool{answers: make(map[question]*answer)}
		p.pools[pool] = known
	}
	a := known.answers[q]
	if a == nil {
		if len(known.answers) >= maxQuestions {
			return answer{}, false
		}
		a = &answer{}
		known.answers[q] = a
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
			p.forgetOthers()
			p.fetchAll(ctx)
		}
	}
}

// forgetOthers forgets the pools that are none of this machine. It waits for those
// that are, but nobody waits for it.
func (p *Prometheus) forgetOthers() {
	unknown := false
	p.mu.Lock()
	for _, known := range p.pools {
		unknown = unknown || !known.here
	}
	p.mu.Unlock()
	if !unknown {
		return
	}
	readings, err := p.found.Pools()
	if err != nil {
		level.Debug(p.logger).Log("msg", "Not all pools could be found to ask Prometheus for", "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range readings {
		if known := p.pools[readings[i].UUID]; known != nil {
			known.here = true
		}
	}
	maps.DeleteFunc(p.pools, func(_ btrfs.UUID, known *remotePool) bool { return !known.here })
}

// due is a question to ask.
type due struct {
	pool btrfs.UUID
	question
	failed time.Time
}

// fetchAll fetches what was asked for since it was fetched last, and forgets what
// nobody asks for.
func (p *Prometheus) fetchAll(ctx context.Context) {
	now := p.now()
	if now.Before(p.notYet) {
		return
	}
	for _, d := range p.due(now) {
		a, err := p.fetch(ctx, d)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			isRefused := refused(err)
			changed := p.fail(d, isRefused)
			if isRefused {
				p.answers()
				if changed {
					level.Warn(p.logger).Log("msg", "Prometheus refuses a question about a pool; where it is asked, the history is the local one, if there is one", "pool", d.pool, "span", d.span, "url", p.address, "err", err)
				}
				continue
			}
			p.notYet = p.now().Add(refreshEach)
			if !p.failing {
				level.Warn(p.logger).Log("msg", "Prometheus does not answer; until it does, the history of pools is the local one, if there is one", "url", p.address, "err", withoutURL(err))
			}
			p.failing = true
			return
		}
		p.answers()
		p.keep(d, a)
	}
}

// answers notes that Prometheus does.
func (p *Prometheus) answers() {
	if p.failing {
		level.Info(p.logger).Log("msg", "Prometheus answers again", "url", p.address)
	}
	p.failing = false
}

// refused reports whether Prometheus answered, and the answer is that this one
// question has none: too many samples, perhaps. One that took it too long is no
// refusal: a Prometheus that has too much to do is left alone for a while.
func refused(err error) bool {
	e, ok := errors.AsType[*promv1.Error](err)
	return ok && (e.Type == promv1.ErrBadData || e.Type == promv1.ErrExec)
}

// fail notes that a question was asked in vain; changed tells that it was refused, or
// not, other than the last time.
func (p *Prometheus) fail(d due, refused bool) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.pools[d.pool]
	if known == nil || known.answers[d.question] == nil {
		return false
	}
	a := known.answers[d.question]
	changed = a.refused != refused
	a.failed, a.refused = p.now(), refused
	return changed
}

// due returns what to fetch, last what was asked in vain, and forgets what nobody
// asks for.
func (p *Prometheus) due(now time.Time) (all []due) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pool, known := range p.pools {
		for q, a := range known.answers {
			switch {
			case now.Sub(a.asked) >= forgetAfter:
				delete(known.answers, q)
			case known.here && now.Sub(a.fetched) >= refreshEach && now.Sub(a.failed).Abs() >= refreshEach && a.asked.After(a.fetched):
				all = append(all, due{pool, q, a.failed})
			}
		}
		if len(known.answers) == 0 {
			delete(p.pools, pool)
		}
	}
	slices.SortFunc(all, func(a, b due) int { return a.failed.Compare(b.failed) })
	return all
}

// keep remembers an answer.
func (p *Prometheus) keep(d due, a answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.pools[d.pool]
	if known == nil || known.answers[d.question] == nil {
		return
	}
	a.asked, a.fetched = known.answers[d.question].asked, p.now()
	known.answers[d.question] = &a
}

// withoutURL leaves the URL out of an error: its user and its query are for nobody.
func withoutURL(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return failed.Err
	}
	return err
}

func (p *Prometheus) fetch(ctx context.Context, q due) (a answer, err error) {
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
