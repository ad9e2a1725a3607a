package browsertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// browser is a tab of a real Chromium.
type browser struct {
	t      *testing.T
	ctx    context.Context
	script bool // pages may run scripts

	mu       sync.Mutex
	requests []string // all that were sent
	faults   []string // errors in the console
}

// newBrowser opens a tab. It ends with the test.
func newBrowser(t *testing.T, width, height int64, scheme string, script bool) *browser {
	t.Helper()
	path := testprogram.Find(t, "chromium", "chromium")
	allocator, stop := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(patience))...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(allocator)
	t.Cleanup(closeTab)
	b := &browser{t: t, ctx: ctx, script: script}
	err := chromedp.Listen(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			b.requests = append(b.requests, e.Request.URL)
		case *runtime.EventExceptionThrown:
			b.faults = append(b.faults, e.ExceptionDetails.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	b.allowScripts(script)
	b.look(width, height, scheme)
	return b
}

// allowScripts has pages run scripts, or none.
func (b *browser) allowScripts(allow bool) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !allow}); err != nil {
		b.t.Fatal(err)
	}
}

// look gives the window a size, and whoever looks at it a taste.
func (b *browser) look(width, height int64, scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.do(chromedp.EmulateViewport(width, height))
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	for _, action := range actions {
		get(b, action)
	}
}

// get is the value of an action.
func get[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for {
		v, err := chromedp.Run(ctx, action)
		if err == nil {
			return v
		}
		if !replaced(err) {
			b.t.Fatalf("%v\nthe page: %s", err, b.text())
		}
	}
}

// replaced tells whether an action did nothing, because new figures came between the
// moment it found what it is for and the moment it asked where that lies. A person
// who misses a button by this much does not notice.
func replaced(err error) bool {
	var e *cdproto.Error
	return errors.As(err, &e) && e.Code == -32000 &&
		slices.Contains([]string{"Could not find node with given id", "Could not compute box model.", "Node is detached from document"}, e.Message)
}

// text is what a person reads.
func (b *browser) text() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body")))
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(text), " ")
}

func (b *browser) says(text string) {
	b.t.Helper()
	eventually(b.ctx, b.t, "the page says "+text, func() bool { return strings.Contains(b.text(), text) })
}

// click waits for what a selector names, and clicks on it.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

// evaluate runs a script as the developer tools do, which the policy of the page
// does not keep.
func evaluate[T any](b *browser, script string) T {
	b.t.Helper()
	return get(b, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
}

// check asserts that nothing was asked of anybody else, and that no script failed.
func (b *browser) check(d *daemon) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		b.t.Error("nothing was requested")
	}
	for _, address := range b.requests {
		if !strings.HasPrefix(address, d.url+"/") {
			b.t.Errorf("the page asked for %s", address)
		}
		if strings.Contains(address, theToken) {
			b.t.Errorf("the token is in %s", address)
		}
	}
	for _, fault := range b.faults {
		b.t.Errorf("a script failed: %s", fault)
	}
}

// axe looks for what people with impairments could not use.
func (b *browser) axe(where string) {
	b.t.Helper()
	source, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") != "true" {
		b.t.Log("axe-core is missing: make axe installs it")
		return
	}
	if err != nil {
		b.t.Fatalf("axe-core (make axe installs it): %v", err)
	}
	if !b.script { // it waits for itself; the page was loaded without, and stays so
		b.allowScripts(true)
		defer b.allowScripts(false)
	}
	found := evaluate[string](b, string(source)+`;axe.run(document, { resultTypes: ["violations"] }).then(r => JSON.stringify({
		passes: r.passes.length, violations: r.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.target + " " + n.failureSummary).join("; ")) }))`)
	var result struct {
		Passes     int
		Violations []string
	}
	if err := json.Unmarshal([]byte(found), &result); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range result.Violations {
		b.t.Errorf("%s: %s", where, v)
	}
	if result.Passes < 15 {
		b.t.Errorf("%s: axe looked at %d rules only", where, result.Passes)
	}
}

// fits asserts that nobody has to scroll sideways.
func (b *browser) fits(where string) {
	b.t.Helper()
	over := evaluate[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`)
	if over > 0 {
		b.t.Errorf("%s is %d pixels too wide", where, over)
	}
}

func TestPageCanBeUsedByEverybody(t *testing.T) {
	d := serveRecorded(t)
	for _, script := range []bool{true, false} {
		for _, width := range []int64{375, 1440} {
			for _, scheme := range []string{"light", "dark"} {
				t.Run(fmt.Sprintf("script %t, %d %s", script, width, scheme), func(t *testing.T) {
					usedByEverybody(newBrowser(t, width, 900, scheme, script), d)
				})
			}
		}
	}
}

func usedByEverybody(b *browser, d *daemon) {
	b.t.Helper()
	b.do(chromedp.Navigate(d.url + "/"))
	if b.script {
		b.says("Live")
	}
	evaluate[bool](b, `document.querySelectorAll("details").forEach(d => { d.open = true }), true`)
	b.fits("the page")
	b.axe("the page")
	// The first is what jumps over the rest.
	b.do(chromedp.KeyEvent("\t"))
	focus := evaluate[string](b, `document.activeElement.className`)
	if focus != "skip" {
		b.t.Errorf("the first key leads to %q, want the link to the pools", focus)
	}
	b.click(".ask button")
	b.says("could be written")
	b.fits("the answer to a what-if")
	b.axe("the answer to a what-if")
	b.check(d)
}

// Whoever has no mouse gets to everything, in the order in which it stands there, sees
// where he is, and is not caught anywhere.
func TestKeyboardLeadsEverywhere(t *testing.T) {
	d := serveRecorded(t)
	b := newBrowser(t, 1440, 900, "light", true)
	b.do(chromedp.Navigate(d.url + "/"))
	b.says("Live")
	stops := evaluate[int](b, `{
		// Of the radio buttons of a group the chosen one is a stop; arrows lead to the others.
		window.stops = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']")]
			.filter(e => e.checkVisibility() && !(e.type === "radio" && !e.checked));
		window.stops.length
	}`)
	if stops < 30 {
		t.Fatalf("there are %d things to get to", stops)
	}
	// The live sections may be replaced meanwhile, and with them what was found: the
	// order is that of what is there.
	for i := range stops {
		b.do(chromedp.KeyEvent("\t"))
		at := evaluate[string](b, `(() => {
			const e = document.activeElement, want = window.stops[`+strconv.Itoa(i)+`];
			const name = e => e.tagName + " " + (e.id || e.getAttribute("href") || e.name || e.getAttribute("aria-label") || e.textContent.trim());
			if (name(e) !== name(want)) return "it is at " + name(e) + ", want " + name(want);
			const style = getComputedStyle(e);
			if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 1) return "nobody sees that it is at " + name(e);
			const box = e.getBoundingClientRect();
			if (box.bottom < 0 || box.top > innerHeight) return name(e) + " is out of sight";
			return "";
		})()`)
		if at != "" {
			t.Fatalf("stop %d of %d: %s", i+1, stops, at)
		}
	}
	b.do(chromedp.KeyEvent("\t"))
	if end := evaluate[string](b, `document.activeElement.tagName`); end != "BODY" {
		t.Errorf("after the last there is %s", end)
	}
}

func TestPolicyKeepsScriptsOut(t *testing.T) {
	d := serveRecorded(t)
	b := newBrowser(t, 1440, 900, "light", true)
	b.do(chromedp.Navigate(d.url + "/"))
	kept := evaluate[string](b, `new Promise(done => {
		document.addEventListener("securitypolicyviolation", e => setTimeout(() => done(e.violatedDirective + " " + window.injected), 100));
		const s = document.createElement("script");
		s.textContent = "window.injected = true";
		document.body.append(s);
	})`)
	if kept != "script-src-elem undefined" {
		t.Errorf("an injected script: %s", kept)
	}
	kept = evaluate[string](b, `new Promise(done => {
		document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
		const i = document.createElement("img");
		i.src = "http://127.0.0.2:1/x";
		document.body.append(i);
	})`)
	if kept != "img-src" {
		t.Errorf("an image from elsewhere: %s", kept)
	}
}

// A page that another program serves on this machine is the same site to a browser,
// which sends the cookie along.
func TestOtherPagesCannotPressButtons(t *testing.T) {
	d := serveHere(t, "")
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method="post" action="%s/pools/00000000-0000-0000-0000-000000000000/scrub"><button id="win">You have won</button></form>`, d.url)
	}))
	t.Cleanup(evil.Close)
	b := newBrowser(t, 1440, 900, "light", true)
	b.do(chromedp.Navigate(d.url + "/pools/00000000-0000-0000-0000-000000000000"))
	evaluate[int](b, `fetch("/session", { method: "POST", body: new URLSearchParams({ token: "`+theToken+`" }), redirect: "manual" }).then(r => r.status)`)
	b.do(chromedp.Navigate(d.url + "/"))
	b.says("Lock the buttons")
	b.do(chromedp.Navigate(evil.URL))
	b.click("#win")
	b.says("Requests from the pages of other sites are refused.")
}

// slow is how fast the disks of a pool are that a scrub takes a while on, in bytes
// per second: it must not end before somebody has clicked on a loaded machine.
const slow = 8 << 20

// slowPool is a pool that a scrub takes a while on. Its label is no other test's: the
// daemons of tests that run at the same time see each other's pools.
func slowPool(t *testing.T) (*btrfstest.Pool, []*btrfstest.FaultDisk) {
	t.Helper()
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	if err != nil {
		t.Fatal(err)
	}
	var disks []*btrfstest.FaultDisk
	options := btrfstest.PoolOptions{Data: "raid1", Metadata: "raid1", Label: "clicks"}
	for _, size := range []int64{4 << 30, 3 << 30, 2 << 30} {
		disk, err := faults.NewDisk(size)
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk)
		options.Disks = append(options.Disks, disk.Disk)
	}
	pool, err := rig.NewPool(options)
	if err == nil {
		err = pool.NewSubvolume("@home")
	}
	if err == nil {
		err = pool.WriteFile("film", 600<<20, rand.New(rand.NewPCG(1, 2)))
	}
	if err == nil {
		err = pool.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range disks {
		disk.Slow(0, slow)
	}
	return pool, disks
}

func config(pool *btrfstest.Pool) string {
	return "snapshots:\n  pools:\n    - pool: " + pool.UUID + "\n      subvolumes: [\"@home\"]\n"
}

func TestScrubByClicking(t *testing.T) {
	pool, disks := slowPool(t)
	d := serveHere(t, config(pool))
	id := "#p" + pool.UUID
	for _, script := range []bool{true, false} {
		t.Run(fmt.Sprintf("script %t", script), func(t *testing.T) {
			for _, disk := range disks {
				disk.Slow(0, slow)
			}
			// Without JavaScript on a phone at night.
			width, scheme := int64(1440), "light"
			if !script {
				width, scheme = 375, "dark"
			}
			b := newBrowser(t, width, 900, scheme, script)
			reload := func() {
				if !script {
					b.do(chromedp.Reload())
				}
			}
			says := func(text string) {
				t.Helper()
				eventually(b.ctx, t, "the page says "+text, func() bool {
					found := strings.Contains(b.text(), text)
					if !found {
						reload()
					}
					return found
				})
			}
			b.do(chromedp.Navigate(d.url + "/pools/" + pool.UUID))
			b.click(id + "-do-scrub")
			b.says("The token, please")
			b.axe("the form for the token")
			b.fits("the form for the token")
			b.do(chromedp.SendKeys(chromedp.CSS("#token"), "not-the-token-at-all"))
			b.click("form[action='/session'] button")
			b.says("That is not the token.")
			b.do(chromedp.SendKeys(chromedp.CSS("#token"), theToken))
			b.click("form[action='/session'] button")
			b.says("The scrub is started.")
			b.do(chromedp.Navigate(d.url + "/pools/" + pool.UUID))
			says("A scrub runs.")

			// The figures move, and with JavaScript the page stays the same one.
			progress := func() (percent float64) {
				value := get(b, chromedp.AttributeValue(chromedp.CSS("progress"), "value")).Value
				if _, err := fmt.Sscanf(value, "%g", &percent); err != nil {
					t.Fatalf("the progress is %q: %v", value, err)
				}
				return percent
			}
			if script {
				evaluate[bool](b, `window.same = true; document.querySelector("details").open = true; true`)
			}
			last := progress()
			for range 2 {
				eventually(b.ctx, t, "the scrub gets on", func() bool { reload(); p := progress(); moved := p > last; last = max(last, p); return moved })
			}
			if script {
				if !evaluate[bool](b, `window.same === true && document.querySelector("details").open`) {
					t.Error("the page was loaded again, or what was open is closed")
				}
			}
			b.axe("the page with a scrub")
			b.fits("the page with a scrub")

			b.click(id + "-do-pause")
			b.says("The scrub is paused.") // before anything is loaded again
			says("Resume")
			b.click(id + "-do-resume")
			b.says("The scrub goes on.")
			says("Pause")
			for _, disk := range disks {
				disk.Fast()
			}
			b.click(id + "-do-snapshot")
			b.says("The snapshots are being taken.")
			b.click(id + "-do-cancel")
			b.says("The scrub is cancelled.")
			says("The last scrub was cancelled")
			says("/@home " + map[bool]string{true: "1", false: "2"}[script])
			b.check(d)
		})
	}
	if strings.Contains(d.log(), theToken) {
		t.Error("the token is in the log")
	}
}

func TestPageSaysThatItIsNotLive(t *testing.T) {
	d := serveRecorded(t)
	b := newBrowser(t, 1440, 900, "light", true)
	b.do(chromedp.Navigate(d.url + "/"))
	b.says("Live")
	d.kill()
	b.says("Not live since")
}

// A daemon that is stuck keeps its connections open.
func TestPageSaysThatAStuckDaemonIsNotLive(t *testing.T) {
	d := serveRecorded(t)
	b := newBrowser(t, 1440, 900, "light", true)
	b.do(chromedp.Navigate(d.url + "/"))
	b.says("Live")
	if err := d.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.says("Not live since")
	if err := d.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(b.ctx, t, "it is live again", func() bool { return !strings.Contains(b.text(), "Not live") })
}
