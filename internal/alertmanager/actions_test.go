package alertmanager_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

const (
	attic = "5f1c0de1-1111-4222-8333-444455556666"
	barn  = "5f1c0de2-1111-4222-8333-444455556666"
)

// machine is what actions command: it notes what it is asked for.
type machine struct {
	t    *testing.T
	dir  string
	now  time.Time
	jobs *job.Store
	log  bytes.Buffer

	mu      sync.Mutex
	asked   []string
	fails   error
	running bool
	// inCall, if set, is called by each start.
	inCall func()

	*alertmanager.Actions
}

func newMachine(t *testing.T, actions ...alertmanager.Action) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), now: time.Date(2026, 3, 7, 20, 0, 0, 0, time.UTC)}
	m.start(actions...)
	return m
}

// start starts the daemon again.
func (m *machine) start(actions ...alertmanager.Action) {
	m.t.Helper()
	var err error
	m.jobs, err = job.Open(state.NewDir(m.dir), 100)
	must(m.t, err)
	m.Actions, err = alertmanager.NewActions(alertmanager.ActionsConfig{
		Logger: log.NewLogfmtLogger(&m.log), State: state.NewDir(m.dir), Jobs: m.jobs, Scrubs: m, Snapshots: snapshots{m},
		Advise: func(pool btrfs.UUID) (alertmanager.Advice, error) {
			return alertmanager.Advice{FreeBytes: 1, FreeAfterBalanceBytes: 5, Command: "btrfs balance start -d /srv", Text: "A balance gives back 4 B."}, m.ask("advise", pool)
		},
		Here: func(pool btrfs.UUID) bool { return pool.String() == attic || pool.String() == barn },
		Now:  func() time.Time { return m.now },
	})
	must(m.t, err)
	m.SetActions(actions)
}

func (m *machine) ask(what string, pool btrfs.UUID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if pool.String() != attic && pool.String() != barn {
		return fmt.Errorf("pool %s: %w", pool, scrub.ErrUnknownPool)
	}
	if m.fails != nil {
		return m.fails
	}
	m.asked = append(m.asked, what+" "+pool.String()[:8])
	return nil
}

func (m *machine) Plan(pool btrfs.UUID, o scrub.Options) (*scrub.Plan, error) {
	return &scrub.Plan{Pool: pool, Options: o, Would: []string{"read it all"}}, m.ask("plan scrub", pool)
}

func (m *machine) Start(pool btrfs.UUID, o scrub.Options, requester string) (job.Job, error) {
	if m.inCall != nil {
		m.inCall()
	}
	if m.running {
		return job.Job{ID: "scrub-1"}, scrub.ErrRunning
	}
	what := "scrub " + string(o.Mode)
	if !o.Deadline.IsZero() {
		what += " within " + o.Deadline.Sub(m.now).String()
	}
	if err := m.ask(what, pool); err != nil {
		return job.Job{}, err
	}
	return m.jobs.Create("scrub", pool, requester, o)
}

type snapshots struct{ *machine }

func (s snapshots) PlanCreate(_ context.Context, pool btrfs.UUID, _ snapshot.CreateOptions) (*snapshot.Plan, error) {
	return &snapshot.Plan{Pool: pool, Would: []string{"take a snapshot of @", "and of @home"}}, s.ask("plan snapshot", pool)
}

func (s snapshots) Create(pool btrfs.UUID, o snapshot.CreateOptions, requester string) (job.Job, error) {
	if err := s.ask("snapshot", pool); err != nil {
		return job.Job{}, err
	}
	return s.jobs.Create("snapshot", pool, requester, o)
}

// takeAsked returns what was asked for since the last call.
func (m *machine) takeAsked() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	asked := m.asked
	m.asked = nil
	return asked
}

var began = time.Date(2026, 3, 7, 19, 45, 57, 0, time.UTC)

// alert is one that fires, with a fingerprint of its labels as Alertmanager has it.
func alert(name, pool string) alertmanager.Alert {
	a := alertmanager.Alert{
		Status: alertmanager.Firing, Labels: map[string]string{"alertname": name, "severity": "warning"}, StartsAt: began,
		Fingerprint: fmt.Sprintf("%08x%.8s", len(name)*7919, strings.ReplaceAll(pool, "-", "")+"00000000"),
	}
	if pool != "" {
		a.Labels["uuid"] = pool
	}
	return a
}

func message(alerts ...alertmanager.Alert) *alertmanager.Message {
	return &alertmanager.Message{Version: "4", Status: alertmanager.Firing, Alerts: alerts}
}

// handle handles a message and returns the results.
func (m *machine) handle(alerts ...alertmanager.Alert) []alertmanager.Result {
	m.t.Helper()
	outcomes, err := m.Handle(context.Background(), message(alerts...), false)
	must(m.t, err)
	var results []alertmanager.Result
	for i := range outcomes {
		results = append(results, outcomes[i].Result)
	}
	return results
}

func (m *machine) expect(what string, got []alertmanager.Result, want []alertmanager.Result, asked ...string) {
	m.t.Helper()
	if !slices.Equal(got, want) {
		m.t.Errorf("%s: the results are %v, want %v", what, got, want)
	}
	if was := m.takeAsked(); !slices.Equal(was, asked) {
		m.t.Errorf("%s: asked for %q, want %q", what, was, asked)
	}
}

func scrubAction(t *testing.T) alertmanager.Action {
	t.Helper()
	return alertmanager.Action{
		Name: "scrub-overdue", Match: matchers(t, `alertname="BtrfsScrubOverdue"`), Kind: alertmanager.Scrub,
		Scrub: scrub.Options{Mode: scrub.Auto}, Within: 48 * time.Hour, CoolDown: 12 * time.Hour,
	}
}

type results = []alertmanager.Result

func TestAlertStartsAScrubOnce(t *testing.T) {
	action := scrubAction(t)
	m := newMachine(t, action)
	overdue := alert("BtrfsScrubOverdue", attic)
	m.expect("the first message", m.handle(overdue), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
	m.expect("its repetition", m.handle(overdue), results{alertmanager.Duplicate})
	m.start(action)
	m.expect("after a restart", m.handle(overdue), results{alertmanager.Duplicate})
	m.now = m.now.Add(40 * 24 * time.Hour)
	m.expect("weeks later", m.handle(overdue), results{alertmanager.Duplicate})

	again := overdue
	again.StartsAt = m.now
	m.expect("it fires anew", m.handle(again), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
}

func TestFlappingAlertCoolsDown(t *testing.T) {
	action := scrubAction(t)
	m := newMachine(t, action)
	flap := alert("BtrfsScrubOverdue", attic)
	m.expect("first", m.handle(flap), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
	for i := range 11 {
		m.now = m.now.Add(time.Hour)
		flap.StartsAt = m.now
		if i == 5 {
			m.start(action)
		}
		m.expect(fmt.Sprintf("%d h later", i+1), m.handle(flap), results{alertmanager.CoolingDown})
	}
	m.expect("another pool", m.handle(alert("BtrfsScrubOverdue", barn)), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de2")
	m.now = m.now.Add(time.Hour)
	m.expect("12 h later", m.handle(flap), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")

	// The clock was wrong, and is set back by a year.
	m.now = m.now.Add(-365 * 24 * time.Hour)
	flap.StartsAt = m.now
	m.expect("the clock is set back", m.handle(flap), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
}

func TestOnlyWhatFiresAndMatchesIsActedOn(t *testing.T) {
	m := newMachine(t, scrubAction(t),
		alertmanager.Action{Name: "snapshot", Match: matchers(t, `alertname=~"Btrfs.*",severity!="info"`), Kind: alertmanager.Snapshot},
		alertmanager.Action{Name: "advice", Match: matchers(t, `alertname="BtrfsBalanceHelps"`), Kind: alertmanager.Balance},
	)
	resolved := alert("BtrfsScrubOverdue", attic)
	resolved.Status = alertmanager.Resolved
	m.expect("resolved", m.handle(resolved), nil)
	m.expect("another alert", m.handle(alert("DiskLatencyHigh", attic)), nil)
	info := alert("BtrfsOldErrors", attic)
	info.Labels["severity"] = "info"
	m.expect("another severity", m.handle(info), nil)
	m.expect("two actions", m.handle(alert("BtrfsScrubOverdue", attic), resolved), results{alertmanager.Started, alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1", "snapshot 5f1c0de1")
	m.expect("advice", m.handle(alert("BtrfsBalanceHelps", barn)), results{alertmanager.Started, alertmanager.Started}, "snapshot 5f1c0de2", "advise 5f1c0de2")
	var advice alertmanager.Advice
	for _, j := range m.jobs.List() {
		if j.Kind == alertmanager.KindBalanceAdvice {
			must(t, json.Unmarshal(j.Result, &advice))
			if j.State != job.Succeeded || j.Reason != "A balance gives back 4 B." {
				t.Errorf("the job is %+v", j)
			}
		}
	}
	if advice.Command != "btrfs balance start -d /srv" {
		t.Errorf("the advice is %+v", advice)
	}
}

func TestPoolComesFromTheLabelAlone(t *testing.T) {
	m := newMachine(t, scrubAction(t))
	unknown := alert("BtrfsScrubOverdue", "5f1c0de3-1111-4222-8333-444455556666")
	m.expect("a pool of another machine", m.handle(unknown), results{alertmanager.UnknownPool})
	for _, bad := range []string{"", "attic", "../" + attic, attic + " ", "5f1c0de1"} {
		a := alert("BtrfsScrubOverdue", attic)
		a.Labels["uuid"] = bad
		// What else the labels say means nothing.
		a.Labels["mode"], a.Labels["pool"], a.Labels["action"] = "full", barn, "snapshot"
		m.expect(fmt.Sprintf("uuid %q", bad), m.handle(a), results{alertmanager.UnknownPool})
	}
}

func TestDryRunDoesAndRemembersNothing(t *testing.T) {
	action := scrubAction(t)
	m := newMachine(t, action, alertmanager.Action{Name: "snapshot", Match: matchers(t, `alertname="BtrfsScrubOverdue"`), Kind: alertmanager.Snapshot, DryRun: true})
	overdue := alert("BtrfsScrubOverdue", attic)
	outcomes, err := m.Handle(context.Background(), message(overdue), true)
	must(t, err)
	if len(outcomes) != 2 || outcomes[0].Result != alertmanager.DryRun || outcomes[0].Detail != "It would read it all." ||
		outcomes[1].Detail != "It would take a snapshot of @; and of @home." {
		t.Errorf("the outcomes are %+v", outcomes)
	}
	m.expect("dry run", nil, nil, "plan scrub 5f1c0de1", "plan snapshot 5f1c0de1")
	m.expect("then for good, but for the action that is always dry", m.handle(overdue),
		results{alertmanager.Started, alertmanager.DryRun}, "scrub auto within 48h0m0s 5f1c0de1", "plan snapshot 5f1c0de1")
	if n := len(m.jobs.List()); n != 1 {
		t.Errorf("there are %d jobs", n)
	}
}

func TestWhatFailedIsDoneWhenTheAlertComesAgain(t *testing.T) {
	m := newMachine(t, scrubAction(t))
	overdue := alert("BtrfsScrubOverdue", attic)
	m.fails = errors.New("the state directory is full")
	outcomes, err := m.Handle(context.Background(), message(overdue), false)
	if !errors.Is(err, alertmanager.ErrNotDone) || outcomes[0].Result != alertmanager.Failed || outcomes[0].Detail != "The state directory is full." {
		t.Errorf("%+v, %v", outcomes, err)
	}
	m.fails = fmt.Errorf("%w: no subvolumes are configured", snapshot.ErrInvalid)
	m.expect("what never succeeds is answered well", m.handle(overdue), results{alertmanager.Failed})
	m.fails = nil
	m.expect("again", m.handle(overdue), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")

	m.running = true
	m.expect("a scrub runs", m.handle(alert("BtrfsScrubOverdue", barn)), results{alertmanager.AlreadyRunning})
	m.expect("it still does", m.handle(alert("BtrfsScrubOverdue", barn)), results{alertmanager.AlreadyRunning})
	m.running = false
	m.expect("it was cancelled", m.handle(alert("BtrfsScrubOverdue", barn)), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de2")
}

// endJobs ends all jobs that have not ended.
func (m *machine) endJobs(as job.State) {
	m.t.Helper()
	for _, j := range m.jobs.List() {
		if !j.State.Ended() {
			_, err := m.jobs.Update(j.ID, func(j *job.Job) { j.State = as })
			must(m.t, err)
		}
	}
}

func TestJobThatFailedIsTriedAgain(t *testing.T) {
	for _, restart := range []bool{false, true} {
		action := scrubAction(t)
		m := newMachine(t, action)
		const asked = "scrub auto within 48h0m0s 5f1c0de1"
		overdue := alert("BtrfsScrubOverdue", attic)
		again := func(what string, want alertmanager.Result, asked ...string) {
			t.Helper()
			if restart {
				m.start(action)
			}
			m.now = m.now.Add(time.Hour)
			m.expect(fmt.Sprintf("%s, restart %v", what, restart), m.handle(overdue), results{want}, asked...)
		}
		again("first", alertmanager.Started, asked)
		again("it waits or runs", alertmanager.Duplicate)
		m.endJobs(job.Failed)
		again("it failed", alertmanager.Started, asked)
		m.endJobs(job.Failed)
		overdue.StartsAt = m.now
		again("it failed, and the alert fires anew", alertmanager.Started, asked)
		m.endJobs(job.Cancelled)
		again("a person cancelled it", alertmanager.Duplicate)
		overdue.StartsAt = m.now
		again("a person cancelled it, and the alert fires anew", alertmanager.CoolingDown)
	}
}

// Each device of a pool may have an alert of its own.
func TestOneScrubServesAllAlertsOfAMessage(t *testing.T) {
	const asked = "scrub auto within 48h0m0s 5f1c0de1"
	var errs []alertmanager.Alert
	for devid := range 4 {
		a := alert("BtrfsScrubOverdue", attic)
		a.Labels["devid"], a.Fingerprint = fmt.Sprint(devid), fmt.Sprintf("%016x", devid)
		errs = append(errs, a)
	}
	first := results{alertmanager.Started, alertmanager.Duplicate, alertmanager.Duplicate, alertmanager.Duplicate}
	all := results{alertmanager.Duplicate, alertmanager.Duplicate, alertmanager.Duplicate, alertmanager.Duplicate}
	for _, coolDown := range []time.Duration{0, 12 * time.Hour} {
		action := scrubAction(t)
		action.CoolDown = coolDown
		m := newMachine(t, action)
		outcomes, err := m.Handle(context.Background(), message(errs...), true)
		must(t, err)
		if len(outcomes) != 4 || outcomes[0].Detail != "It would read it all." || outcomes[3].Result != alertmanager.DryRun || outcomes[3].Detail != "It would be done for another alert of the message, about the same pool." {
			t.Errorf("a dry run says %+v", outcomes)
		}
		m.expect("a dry run", nil, nil, "plan scrub 5f1c0de1")

		m.fails = errors.New("the state directory is full")
		outcomes, err = m.Handle(context.Background(), message(errs...), false)
		if !errors.Is(err, alertmanager.ErrNotDone) || outcomes[3].Result != alertmanager.Failed || outcomes[3].Detail != "The state directory is full." {
			t.Errorf("what fails gives %+v, %v", outcomes, err)
		}
		m.fails = nil

		outcomes, err = m.Handle(context.Background(), message(append(errs[:4:4], alert("BtrfsScrubOverdue", barn))...), false)
		must(t, err)
		if last := outcomes[3]; last.Job == "" || last.Job != outcomes[0].Job || last.Detail != "It was done for another alert of the message, about the same pool." {
			t.Errorf("the last alert of the pool gives %+v", last)
		}
		var got results
		for i := range outcomes {
			got = append(got, outcomes[i].Result)
		}
		m.expect("the message", got, append(first[:4:4], alertmanager.Started), asked, "scrub auto within 48h0m0s 5f1c0de2")
		m.now = m.now.Add(24 * time.Hour)
		m.start(action)
		m.expect("its repetition, after the cool-down and a restart", m.handle(errs...), all)
		m.endJobs(job.Failed)
		m.expect("the scrub failed", m.handle(errs...), first, asked)
	}
}

// A job that failed long ago is of no account where the action was done since.
func TestFailedJobDoesNotEndTheCoolDownOfALaterOne(t *testing.T) {
	m := newMachine(t, scrubAction(t))
	overdue, other := alert("BtrfsScrubOverdue", attic), alert("BtrfsScrubOverdue", attic)
	other.Fingerprint = "ffffffffffffffff" // by another Prometheus
	m.expect("the first", m.handle(overdue), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
	m.endJobs(job.Failed)
	m.expect("another", m.handle(other), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
	m.endJobs(job.Succeeded)
	m.expect("the first again: that was for it too", m.handle(overdue), results{alertmanager.Duplicate})
}

// One Alertmanager sends the alerts of all machines to each of them.
func TestAlertsOfOtherMachinesAreNotPosted(t *testing.T) {
	var posted []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var p alertmanager.Posted
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		posted = append(posted, p.Alert.Labels["uuid"])
	}))
	t.Cleanup(server.Close)
	m := newMachine(t, alertmanager.Action{Name: "lights", Match: matchers(t, `alertname="BtrfsPoolVanished"`), Kind: alertmanager.Webhook, URL: server.URL, Client: server.Client()})
	m.expect("alerts of all machines",
		m.handle(alert("BtrfsPoolVanished", "5f1c0de3-1111-4222-8333-444455556666"), alert("BtrfsPoolVanished", attic), alert("BtrfsPoolVanished", "nonsense"), alert("BtrfsPoolVanished", "")),
		results{alertmanager.UnknownPool, alertmanager.Started, alertmanager.UnknownPool, alertmanager.Started})
	if want := []string{attic, ""}; !slices.Equal(posted, want) {
		t.Errorf("posted for %q, want %q", posted, want)
	}
	outcomes, err := m.Handle(context.Background(), message(alert("BtrfsPoolVanished", "5f1c0de3-1111-4222-8333-444455556666")), true)
	if err != nil || outcomes[0].Result != alertmanager.UnknownPool {
		t.Errorf("a dry run says %+v, %v", outcomes, err)
	}
}

// Four devices have errors, each of which Alertmanager groups by itself: the pool is
// scrubbed once, and not once more each time that an alert is repeated.
func TestAlertsOfAPoolInMessagesOfTheirOwnAreOneScrub(t *testing.T) {
	action := scrubAction(t)
	m := newMachine(t, action)
	var devices []alertmanager.Alert
	for i := range 4 {
		a := alert("BtrfsScrubOverdue", attic)
		a.Fingerprint = fmt.Sprint("device", i)
		devices = append(devices, a)
	}
	m.now = m.now.Add(time.Second)
	m.expect("the first", m.handle(devices[0]), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
	m.now = m.now.Add(time.Minute)
	for i := range devices[1:] {
		m.expect("another one", m.handle(devices[i+1]), results{alertmanager.Duplicate})
	}
	m.now = m.now.Add(2 * action.CoolDown)
	m.start(action)
	for i := range devices {
		m.expect("repeated", m.handle(devices[i]), results{alertmanager.Duplicate})
	}
	devices[3].StartsAt = m.now
	m.expect("one that began after that scrub", m.handle(devices[3]), results{alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1")
}

// A crash after the scrub was started, and before that was noted.
func TestCrashBeforeTheNoteDoesNothingTwice(t *testing.T) {
	action := scrubAction(t)
	for _, kind := range []alertmanager.Kind{alertmanager.Scrub, alertmanager.Snapshot, alertmanager.Balance} {
		action.Kind = kind
		m := newMachine(t, action)
		overdue := alert("BtrfsScrubOverdue", attic)
		if got := m.handle(overdue); !slices.Equal(got, results{alertmanager.Started}) || len(m.takeAsked()) != 1 {
			t.Fatalf("%s: %v", kind, got)
		}
		must(t, os.Remove(filepath.Join(m.dir, "alert-actions.jsonl")))
		m.start(action)
		m.expect("after the crash", m.handle(overdue), results{alertmanager.Started})
		if n := len(m.jobs.List()); n != 1 {
			t.Errorf("%s: there are %d jobs", kind, n)
		}
		m.expect("and then", m.handle(overdue), results{alertmanager.Duplicate})
	}
}

// All members of a cluster send the alert at the same time.
func TestMessagesAtOnceDoItOnce(t *testing.T) {
	m := newMachine(t, scrubAction(t))
	inside, goOn := make(chan struct{}), make(chan struct{})
	m.inCall = func() {
		inside <- struct{}{}
		<-goOn
	}
	first := make(chan []alertmanager.Outcome)
	go func() {
		outcomes, _ := m.Handle(context.Background(), message(alert("BtrfsScrubOverdue", attic)), false)
		first <- outcomes
	}()
	<-inside
	for range 5 {
		if got := m.handle(alert("BtrfsScrubOverdue", attic)); !slices.Equal(got, results{alertmanager.Duplicate}) {
			t.Errorf("the second gets %v", got)
		}
	}
	other := alert("BtrfsScrubOverdue", attic)
	other.Fingerprint = "ffffffffffffffff" // by another Prometheus
	if got := m.handle(other); !slices.Equal(got, results{alertmanager.CoolingDown}) {
		t.Errorf("another alert gets %v", got)
	}
	close(goOn)
	if outcomes := <-first; outcomes[0].Result != alertmanager.Started {
		t.Errorf("the first gets %+v", outcomes)
	}
	if asked := m.takeAsked(); len(asked) != 1 {
		t.Errorf("asked for %v", asked)
	}
}

func TestWebhookGetsTheAlert(t *testing.T) {
	const secret = "s3cr3t"
	var (
		got    []*http.Request
		bodies []string
		status = http.StatusBadGateway
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got, bodies = append(got, r), append(bodies, string(body))
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	m := newMachine(t, alertmanager.Action{Name: "lights", Match: matchers(t, `severity="warning"`), Kind: alertmanager.Webhook, URL: server.URL + "/" + secret, Client: server.Client(), CoolDown: time.Hour})
	down := alert("BtrfsGovernorDown", "") // of no pool
	outcomes, err := m.Handle(context.Background(), message(down), false)
	if !errors.Is(err, alertmanager.ErrNotDone) || outcomes[0].Detail != "Post to the webhook: it answers 502 Bad Gateway." {
		t.Errorf("%+v, %v", outcomes, err)
	}
	status = http.StatusNoContent
	m.expect("again", m.handle(down), results{alertmanager.Started})
	m.expect("and again", m.handle(down), results{alertmanager.Duplicate})
	var posted alertmanager.Posted
	must(t, json.Unmarshal([]byte(bodies[1]), &posted))
	if posted.Action != "lights" || posted.Alert.Labels["alertname"] != "BtrfsGovernorDown" || posted.Alert.Fingerprint != down.Fingerprint {
		t.Errorf("posted %s", bodies[1])
	}
	if key := got[1].Header.Get("Idempotency-Key"); key == "" || key != got[0].Header.Get("Idempotency-Key") || len(got) != 2 {
		t.Errorf("%d requests, with the keys %q and %q", len(got), got[0].Header.Get("Idempotency-Key"), key)
	}
	server.Close()
	down.StartsAt = down.StartsAt.Add(2 * time.Hour)
	m.now = m.now.Add(2 * time.Hour)
	outcomes, err = m.Handle(context.Background(), message(down), false)
	if err == nil || strings.Contains(fmt.Sprint(err, outcomes), secret) || strings.Contains(m.log.String(), secret) {
		t.Errorf("%+v, %v\n%s", outcomes, err, &m.log)
	}
}

// A webhook whose server hangs: the scrubs do not wait for it, and it is asked once
// for all alerts of the message.
func TestHangingWebhookHoldsNothingElseUp(t *testing.T) {
	asked := make(chan string, 10)
	hang := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not see that the client has gone
		asked <- "hangs"
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(hangs.Close)
	t.Cleanup(func() { close(hang) })
	works := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- "works" }))
	t.Cleanup(works.Close)
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- "refuses"
		w.WriteHeader(http.StatusBadRequest)
	}))
	t.Cleanup(refuses.Close)
	webhook := func(name string, server *httptest.Server) alertmanager.Action {
		client := server.Client()
		client.Timeout = 200 * time.Millisecond
		return alertmanager.Action{Name: name, Match: matchers(t, `alertname=~".+"`), Kind: alertmanager.Webhook, URL: server.URL, Client: client}
	}
	m := newMachine(t, webhook("hangs", hangs), webhook("works", works), webhook("refuses", refuses), scrubAction(t))
	m.inCall = func() {
		if len(asked) > 0 {
			t.Error("a scrub waited for a webhook")
		}
	}
	outcomes, err := m.Handle(context.Background(), message(alert("BtrfsScrubOverdue", attic), alert("BtrfsScrubOverdue", barn)), false)
	if !errors.Is(err, alertmanager.ErrNotDone) || !strings.Contains(err.Error(), "4 of 8 failed") {
		t.Errorf("the error is %v", err)
	}
	var got, requests []string
	for i := range outcomes {
		got = append(got, outcomes[i].Action+" "+string(outcomes[i].Result))
	}
	want := []string{
		"scrub-overdue started", "scrub-overdue started",
		"hangs failed", "works started", "refuses failed", "hangs failed", "works started", "refuses failed",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the outcomes are %q, want %q", got, want)
	}
	if detail := outcomes[5].Detail; detail != "Post to the webhook: it failed for another alert of the message, and was not tried again." {
		t.Errorf("of the second alert for the webhook that hangs: %s", detail)
	}
	for range len(asked) {
		requests = append(requests, <-asked)
	}
	if want := []string{"hangs", "works", "refuses", "works", "refuses"}; !slices.Equal(requests, want) {
		t.Errorf("the webhooks were asked in the order %q, want %q", requests, want)
	}
	for _, text := range []string{`err="post to the webhook: context deadline exceeded`, `err="post to the webhook: it answers 400 Bad Request"`, `err="post to the webhook: it failed for another alert`} {
		if !strings.Contains(m.log.String(), text) {
			t.Errorf("the log does not have %s:\n%s", text, &m.log)
		}
	}
}

func TestTimeOutLeavesTheRestToTheNextMessage(t *testing.T) {
	m := newMachine(t, scrubAction(t))
	ctx, cancel := context.WithCancel(context.Background())
	m.inCall = cancel
	outcomes, err := m.Handle(ctx, message(alert("BtrfsScrubOverdue", attic), alert("BtrfsScrubOverdue", barn)), false)
	if !errors.Is(err, alertmanager.ErrNotDone) || len(outcomes) != 2 || outcomes[0].Result != alertmanager.Started ||
		outcomes[1].Result != alertmanager.Failed || outcomes[1].Detail != "There was no time left for it." {
		t.Errorf("%+v, %v", outcomes, err)
	}
	if !strings.Contains(m.log.String(), `err="there was no time left for it"`) {
		t.Errorf("the log does not say it:\n%s", &m.log)
	}
	m.inCall = nil
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if outcomes, err = m.Handle(ctx, message(alert("BtrfsScrubOverdue", attic)), false); err != nil || outcomes[0].Result != alertmanager.Duplicate {
		t.Errorf("what was done takes no time: %+v, %v", outcomes, err)
	}
	m.expect("the next message", m.handle(alert("BtrfsScrubOverdue", attic), alert("BtrfsScrubOverdue", barn)),
		results{alertmanager.Duplicate, alertmanager.Started}, "scrub auto within 48h0m0s 5f1c0de1", "scrub auto within 48h0m0s 5f1c0de2")
}

func TestDamagedMemoryIsSetAsideAndTheRestKept(t *testing.T) {
	action := scrubAction(t)
	m := newMachine(t, action)
	m.handle(alert("BtrfsScrubOverdue", attic))
	path := filepath.Join(m.dir, "alert-actions.jsonl")
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, append([]byte("{\"action\":7}\n"), text...), 0o600))
	_, err = alertmanager.NewActions(alertmanager.ActionsConfig{Logger: log.NewNopLogger(), State: state.NewDir(m.dir), Jobs: m.jobs, Now: time.Now})
	if !errors.Is(err, state.ErrDamaged) {
		t.Errorf("the error is %v", err)
	}
	m.takeAsked()
	m.start(action)
	m.expect("what was good is known", m.handle(alert("BtrfsScrubOverdue", attic)), results{alertmanager.Duplicate})
}

func TestMemoryStaysSmall(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	action := alertmanager.Action{Name: "lights", Match: matchers(t, `alertname=~".+"`), Kind: alertmanager.Webhook, URL: server.URL, Client: server.Client()}
	m := newMachine(t, action)
	// One alert that begins anew each time: what is known of it is one line.
	a := alert("Flapping", "")
	for range 1200 {
		m.now = m.now.Add(time.Minute)
		a.StartsAt = m.now
		m.handle(a)
	}
	info, err := os.Stat(filepath.Join(m.dir, "alert-actions.jsonl"))
	must(t, err)
	if info.Size() > 64<<10 {
		t.Errorf("what is known of one alert has %d bytes", info.Size())
	}
}

func TestMetricsOfActions(t *testing.T) {
	m := newMachine(t, scrubAction(t))
	m.handle(alert("BtrfsScrubOverdue", attic))
	m.handle(alert("BtrfsScrubOverdue", attic))
	registry := prometheus.NewPedanticRegistry()
	must(t, registry.Register(m.Actions))
	must(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP btrfs_governor_alert_actions_total Alerts that an action was configured for, by what came of them.
# TYPE btrfs_governor_alert_actions_total counter
btrfs_governor_alert_actions_total{action="scrub-overdue",result="already_running"} 0
btrfs_governor_alert_actions_total{action="scrub-overdue",result="cooling_down"} 0
btrfs_governor_alert_actions_total{action="scrub-overdue",result="dry_run"} 0
btrfs_governor_alert_actions_total{action="scrub-overdue",result="duplicate"} 1
btrfs_governor_alert_actions_total{action="scrub-overdue",result="failed"} 0
btrfs_governor_alert_actions_total{action="scrub-overdue",result="started"} 1
btrfs_governor_alert_actions_total{action="scrub-overdue",result="unknown_pool"} 0
`)))
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
