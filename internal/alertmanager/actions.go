package alertmanager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// Kind says what an action does.
type Kind string

// The kinds of actions.
const (
	Scrub    Kind = "scrub"
	Snapshot Kind = "snapshot"
	// Balance changes nothing: it says what a balance would give back, and by
	// which command.
	Balance Kind = "balance"
	Webhook Kind = "webhook"
)

// KindBalanceAdvice is the kind of the jobs that hold what Balance said.
const KindBalanceAdvice = "balance_advice"

// Action is what to do about the alerts that match. Only what is configured is
// done: the labels of an alert say which pool it is about, and nothing else.
type Action struct {
	Name  string
	Match labels.Matchers // all must match
	Kind  Kind
	// Scrub are the options of a scrub; its deadline counts Within from its
	// start, 0 is none.
	Scrub  scrub.Options
	Within time.Duration
	// URL is what a webhook posts to, with Client.
	URL    string
	Client *http.Client
	// CoolDown is how long nothing more is done for a pool after this action was
	// done for it.
	CoolDown time.Duration
	// DryRun only says what would be done.
	DryRun bool
}

// Result is what came of an alert that an action matches.
type Result string

// The results.
const (
	Started Result = "started" // or done, where it is done at once
	// AlreadyRunning is where what it asks for is under way for somebody else. If the
	// alert comes again after that, it is done: that one may have been cancelled, or
	// have begun long before what the alert is about.
	AlreadyRunning Result = "already_running"
	DryRun         Result = "dry_run"
	// Duplicate is an alert for which it was done: Alertmanager repeats them, and a
	// message may have several about one pool.
	Duplicate   Result = "duplicate"
	CoolingDown Result = "cooling_down"
	UnknownPool Result = "unknown_pool" // the alert is of none of this machine
	Failed      Result = "failed"       // it is done when Alertmanager repeats the alert
)

// Results lists all results.
func Results() []Result {
	return []Result{Started, AlreadyRunning, DryRun, Duplicate, CoolingDown, UnknownPool, Failed}
}

// Outcome is what came of one alert and one action.
type Outcome struct {
	Action      string `json:"action"`
	Kind        Kind   `json:"kind"`
	Alert       string `json:"alert"` // its name
	Fingerprint string `json:"fingerprint"`
	Pool        string `json:"pool,omitempty"` // its UUID
	Result      Result `json:"result"`
	// Detail says why, or what would be done; a sentence.
	Detail string `json:"detail,omitempty"`
	Job    string `json:"job,omitempty"`
}

// Scrubs is the scrub runner, see scrub.Runner.
type Scrubs interface {
	Plan(pool btrfs.UUID, o scrub.Options) (*scrub.Plan, error)
	Start(pool btrfs.UUID, o scrub.Options, requester string) (job.Job, error)
}

// Snapshots is the snapshot runner, see snapshot.Runner.
type Snapshots interface {
	PlanCreate(ctx context.Context, pool btrfs.UUID, o snapshot.CreateOptions) (*snapshot.Plan, error)
	Create(pool btrfs.UUID, o snapshot.CreateOptions, requester string) (job.Job, error)
}

// Advice is what a balance of a pool would give back.
type Advice struct {
	FreeBytes             uint64 `json:"free_bytes"`
	FreeAfterBalanceBytes uint64 `json:"free_after_balance_bytes"`
	Command               string `json:"command"`
	Text                  string `json:"text"`
}

// ErrNoPool is what Advise returns for a pool that this machine does not have.
var ErrNoPool = errors.New("this machine has no such pool")

// ActionsConfig is what Actions need. All of it must be set.
type ActionsConfig struct {
	Logger    log.Logger
	State     *state.Dir
	Jobs      *job.Store
	Scrubs    Scrubs
	Snapshots Snapshots
	// Advise says what a balance of a pool would give back.
	Advise func(pool btrfs.UUID) (Advice, error)
	// Here tells whether a pool is of this machine, also one that is gone: an alert
	// may say just that.
	Here func(pool btrfs.UUID) bool
	Now  func() time.Time
}

// Actions turns alerts into actions. Its methods may be called from any
// goroutine.
type Actions struct {
	cfg     ActionsConfig
	metrics *actionMetrics

	mu      sync.Mutex
	actions []Action
	done    *memory
	// doing are those under way and the fingerprints of their alerts: the members
	// of a cluster may all send an alert at once.
	doing map[doingKey]string
}

// doingKey is an action and the pool it is done for, or the fingerprint of an
// alert that is of none.
type doingKey struct{ action, of string }

// NewActions reads what was done before. With an error of kind state.ErrDamaged
// the actions are good, but some may be done again.
func NewActions(cfg ActionsConfig) (*Actions, error) {
	a := &Actions{cfg: cfg, metrics: newActionMetrics(), doing: make(map[doingKey]string)}
	var err error
	a.done, err = openMemory(cfg.State, cfg.Now(), func(id string) bool {
		j, err := cfg.Jobs.Get(id) // one that is no longer known ended long ago
		return err == nil && j.State == job.Failed
	})
	if err != nil && !errors.Is(err, state.ErrDamaged) {
		return nil, err
	}
	return a, err
}

// SetActions replaces what is configured.
func (a *Actions) SetActions(actions []Action) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.actions = actions
	for i := range actions {
		a.metrics.show(actions[i].Name)
	}
}

// ErrNotDone is what Handle returns with the outcomes where the answer has to make
// Alertmanager send the message again soon.
var ErrNotDone = errors.New("not all could be done")

// Handle does what is configured for the firing alerts of a message. It does
// nothing for one that is resolved. With dryRun it only says what it would do. When
// ctx is done it begins nothing more: what it did not come to has failed.
func (a *Actions) Handle(ctx context.Context, m *Message, dryRun bool) ([]Outcome, error) {
	outcomes := []Outcome{}
	h := handling{Actions: a, dryRun: dryRun, served: make(map[doingKey]once), gaveUp: make(map[*Action]bool)}
	again := 0
	for _, p := range a.pairs(m) {
		o := Outcome{Action: p.action.Name, Kind: p.action.Kind, Alert: p.alert.Labels[model.AlertNameLabel], Fingerprint: p.alert.Fingerprint}
		err := h.handle(ctx, p, &o)
		if err != nil {
			o.Result, o.Detail = resultOf(err), sentence(err)
		}
		if o.Result == Failed && !errors.Is(err, scrub.ErrInvalid) && !errors.Is(err, snapshot.ErrInvalid) {
			again++ // the others are refused the next time too
		}
		a.metrics.count(p.action.Name, o.Result)
		a.log(&o, err)
		outcomes = append(outcomes, o)
	}
	if again > 0 && !dryRun {
		return outcomes, fmt.Errorf("%w (%d of %d failed)", ErrNotDone, again, len(outcomes))
	}
	return outcomes, nil
}

// handling is what is known while one message is handled.
type handling struct {
	*Actions
	dryRun bool
	// served is what was done for a pool: once for all alerts of the message that ask
	// for it, such as one for each device.
	served map[doingKey]once
	// gaveUp are the webhooks that failed: one that does not answer must not use up
	// the time of the others, alert by alert.
	gaveUp map[*Action]bool
}

// once is what came of an action that serves more than one alert.
type once struct {
	Outcome
	err error
}

// pair is an alert and an action that it matches.
type pair struct {
	action *Action
	alert  *Alert
}

// pairs returns what is to be done about a message, in the order in which it is:
// a webhook waits for others, so it comes after what this machine does itself.
func (a *Actions) pairs(m *Message) []pair {
	a.mu.Lock()
	actions := a.actions
	a.mu.Unlock()
	var own, webhooks []pair
	for i := range m.Alerts {
		alert := &m.Alerts[i]
		if alert.Status != Firing {
			continue
		}
		set := labelSet(alert.Labels)
		for j := range actions {
			action := &actions[j]
			switch {
			case !action.Match.Matches(set):
			case action.Kind == Webhook:
				webhooks = append(webhooks, pair{action, alert})
			default:
				own = append(own, pair{action, alert})
			}
		}
	}
	return append(own, webhooks...)
}

func labelSet(from map[string]string) model.LabelSet {
	set := make(model.LabelSet, len(from))
	for name, value := range from {
		set[model.LabelName(name)] = model.LabelValue(value)
	}
	return set
}

func (a *Actions) log(o *Outcome, err error) {
	l := level.Info(a.cfg.Logger)
	switch o.Result {
	case Duplicate, CoolingDown, UnknownPool:
		l = level.Debug(a.cfg.Logger) // each repetition of an alert gives one
	case Failed:
		l = level.Warn(a.cfg.Logger)
	}
	if err != nil {
		l = log.With(l, "err", err)
	} else {
		l = log.With(l, "detail", o.Detail)
	}
	l.Log("msg", "Alert", "action", o.Action, "alert", printable(o.Alert), "fingerprint", o.Fingerprint, "pool", o.Pool, "result", o.Result, "job", o.Job)
}

// printable bounds what an alert can have us write.
func printable(text string) string {
	const most = 100
	text = strings.ToValidUTF8(text, "?")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// handle does an action for an alert, and says in the outcome what came of it; with
// an error nothing did.
func (h *handling) handle(ctx context.Context, p pair, o *Outcome) error {
	// One Alertmanager of many machines may send all alerts to each.
	label := p.alert.Labels["uuid"]
	pool, err := btrfs.ParseUUID(label)
	switch {
	case label == "" && p.action.Kind == Webhook:
		// The alert of an exporter that is down is of no pool.
	case err != nil:
		o.Result, o.Detail = UnknownPool, "The alert has no label uuid that names a pool."
		return nil
	case p.action.Kind == Webhook && !h.cfg.Here(pool):
		return fmt.Errorf("pool %s: %w", pool, ErrNoPool)
	default:
		o.Pool = pool.String()
	}
	if h.dryRun || p.action.DryRun {
		return h.serve(p, o, "It would be done for another alert of the message, about the same pool.", func() (err error) {
			o.Result = DryRun
			o.Detail, err = h.plan(ctx, p.action, pool)
			return err
		})
	}
	line := memoryLine{Action: o.Action, Fingerprint: o.Fingerprint, Pool: o.Pool, Since: p.alert.StartsAt, At: h.cfg.Now()}
	if !h.begin(o, p.action, &line) {
		return nil
	}
	defer h.end(o, &line)
	return h.serve(p, o, "It was done for another alert of the message, about the same pool.", func() error {
		return h.do(ctx, p, pool, o)
	})
}

// serve calls do, unless that was done for another alert of the message; then it
// says so. A webhook gets each alert.
func (h *handling) serve(p pair, o *Outcome, other string, do func() error) error {
	key := doingKey{o.Action, o.Pool}
	first, served := h.served[key]
	if !served {
		first.err = do()
		if first.err != nil {
			o.Result = Failed
		}
		first.Outcome = *o
		if p.action.Kind != Webhook {
			h.served[key] = first
		}
		return first.err
	}
	o.Result, o.Detail, o.Job = first.Result, first.Detail, first.Job
	switch o.Result {
	case Started:
		o.Result, o.Detail = Duplicate, other
	case DryRun:
		o.Detail = other
	}
	return first.err
}

// begin takes the place of an action that is to be done; if it is not to be, the
// outcome says why.
func (h *handling) begin(o *Outcome, action *Action, line *memoryLine) bool {
	_, served := h.served[line.doing()]
	a := h.Actions
	a.mu.Lock()
	defer a.mu.Unlock()
	under, busy := a.doing[line.doing()]
	switch {
	case busy && under == line.Fingerprint, a.done.has(line):
		o.Result = Duplicate
	case busy:
		o.Result, o.Detail = CoolingDown, "The action is being done for this pool."
	case !served && action.Kind != Webhook && a.done.covers(line):
		o.Result, o.Detail = Duplicate, "The action was done for this pool since the alert began to fire."
	case !served && a.done.coolsDown(line, action.CoolDown):
		o.Result, o.Detail = CoolingDown, fmt.Sprintf("The action was done for this pool less than %s ago.", action.CoolDown)
	default:
		a.doing[line.doing()] = line.Fingerprint
		return true
	}
	return false
}

// end gives the place back, and notes what was done. A crash before that is found
// out by the jobs.
func (a *Actions) end(o *Outcome, line *memoryLine) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.doing, line.doing())
	if o.Result != Started && o.Result != Duplicate {
		return
	}
	line.Job = o.Job
	if err := a.done.write(line); err != nil {
		level.Error(a.cfg.Logger).Log("msg", "An action may be done again after a restart, for it could not be noted", "action", o.Action, "err", err)
	}
}

func resultOf(err error) Result {
	for _, unknown := range []error{scrub.ErrUnknownPool, snapshot.ErrUnknownPool, ErrNoPool, btrfs.ErrUnmounted} {
		if errors.Is(err, unknown) {
			return UnknownPool
		}
	}
	return Failed
}

func sentence(err error) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// plan says what an action would do.
func (a *Actions) plan(ctx context.Context, action *Action, pool btrfs.UUID) (string, error) {
	switch action.Kind {
	case Scrub:
		plan, err := a.cfg.Scrubs.Plan(pool, a.scrubOptions(action))
		if err != nil {
			return "", err
		}
		return would(plan.Would), nil
	case Snapshot:
		plan, err := a.cfg.Snapshots.PlanCreate(ctx, pool, snapshot.CreateOptions{})
		if err != nil {
			return "", err
		}
		return would(plan.Would), nil
	case Balance:
		advice, err := a.cfg.Advise(pool)
		return advice.Text, err
	}
	return "It would post the alert to the webhook of the action.", nil
}

func would(what []string) string { return "It would " + strings.Join(what, "; ") + "." }

func (a *Actions) scrubOptions(action *Action) scrub.Options {
	o := action.Scrub
	if action.Within > 0 {
		o.Deadline = a.cfg.Now().Add(action.Within)
	}
	return o
}

// do does an action. One that was done before a crash is found by its job.
func (h *handling) do(ctx context.Context, p pair, pool btrfs.UUID, o *Outcome) error {
	if ctx.Err() != nil {
		return errors.New("there was no time left for it")
	}
	o.Result = Started
	if p.action.Kind == Webhook {
		return h.post(ctx, p)
	}
	requester := requesterOf(p.action, p.alert)
	if j, ok := h.jobOf(requester); ok {
		o.Job, o.Detail = j.ID, "It was before the daemon ended."
		return nil
	}
	var j job.Job
	var err error
	switch p.action.Kind {
	case Scrub:
		j, err = h.cfg.Scrubs.Start(pool, h.scrubOptions(p.action), requester)
		if errors.Is(err, scrub.ErrRunning) {
			o.Result, o.Detail, err = AlreadyRunning, "A scrub of the pool is under way.", nil
		}
	case Snapshot:
		j, err = h.cfg.Snapshots.Create(pool, snapshot.CreateOptions{}, requester)
	case Balance:
		var advice Advice
		if advice, err = h.cfg.Advise(pool); err == nil {
			o.Detail = advice.Text
			j, err = h.adviceJob(pool, requester, advice)
		}
	}
	o.Job = j.ID
	return err
}

func requesterOf(action *Action, alert *Alert) string {
	return fmt.Sprintf("action %s for alert %s since %s", action.Name, alert.Fingerprint, alert.StartsAt.UTC().Format(time.RFC3339Nano))
}

func (a *Actions) jobOf(requester string) (job.Job, bool) {
	for _, j := range a.cfg.Jobs.List() {
		// One that failed is tried again.
		if j.Requester == requester && j.State != job.Failed {
			return j, true
		}
	}
	return job.Job{}, false
}

func (a *Actions) adviceJob(pool btrfs.UUID, requester string, advice Advice) (job.Job, error) {
	result, err := json.Marshal(advice)
	if err != nil {
		return job.Job{}, fmt.Errorf("write the advice: %w", err)
	}
	j, err := a.cfg.Jobs.Create(KindBalanceAdvice, pool, requester, struct{}{})
	if err != nil {
		return j, err
	}
	return a.cfg.Jobs.Update(j.ID, func(j *job.Job) {
		j.State, j.Reason, j.Result = job.Succeeded, advice.Text, result
	})
}

// webhookTimeout is how long an answer of a webhook is waited for.
const webhookTimeout = 10 * time.Second

// Posted is what a webhook of an action gets.
type Posted struct {
	Action string `json:"action"`
	Alert  Alert  `json:"alert"`
}

// post posts an alert, unless it is of no use.
func (h *handling) post(ctx context.Context, p pair) error {
	if h.gaveUp[p.action] {
		return errors.New("post to the webhook: it failed for another alert of the message, and was not tried again")
	}
	status, err := p.action.post(ctx, p.alert)
	// An answer such as 400 may be about that alert alone, and costs no time.
	h.gaveUp[p.action] = err != nil && (status == 0 || status >= 500)
	return err
}

// post sends an alert; status is that of the answer, or 0. The header
// Idempotency-Key is the same when it is sent again, because the answer was lost.
func (action *Action) post(ctx context.Context, alert *Alert) (status int, err error) {
	body, err := json.Marshal(Posted{action.Name, *alert})
	if err != nil {
		return 0, fmt.Errorf("write the alert: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, action.URL, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("post to the webhook: its URL is wrong")
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", fmt.Sprintf("%s/%s/%d", action.Name, alert.Fingerprint, alert.StartsAt.UnixNano()))
	answer, err := action.Client.Do(r)
	if err != nil {
		return 0, fmt.Errorf("post to the webhook: %w", withoutURL(err))
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // so that the connection is used again
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return answer.StatusCode, fmt.Errorf("post to the webhook: it answers %s", answer.Status)
	}
	return answer.StatusCode, nil
}
