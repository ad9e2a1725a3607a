package browsertest

import (
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

var screenshots = flag.String("screenshots", "", "directory to put the pictures of TestScreenshots into")

const tib = 1 << 40

// TestScreenshots takes the pictures of the documents: of a real pool of four odd
// drives, a scrub of which has found something, that filled up for two months.
func TestScreenshots(t *testing.T) {
	if *screenshots == "" {
		t.Skip("no directory for the pictures is given: make screenshots takes them")
	}
	btrfstest.Require(t)
	rig := btrfstest.New(t)
	options := btrfstest.PoolOptions{Sizes: []int64{8 * tib, 4 * tib, 2 * tib, tib}, Data: "raid1", Metadata: "raid1", Label: "attic"}
	pool, err := rig.NewPool(options)
	must(t, err)
	must(t, pool.NewSubvolume("@home"))
	must(t, pool.NewSubvolume("@media"))
	must(t, pool.WriteFile("@media/holiday.mp4", 500<<20, rand.New(rand.NewPCG(1, 2))))
	must(t, pool.Allocate("@media/films", 2800<<30))
	must(t, pool.Sync())
	must(t, pool.CorruptFile("@media/holiday.mp4", 1<<20, 0))

	dir := t.TempDir()
	fillHistory(t, dir, pool)
	d := serveIn(t, dir, "snapshots:\n  pools:\n    - pool: "+pool.UUID+"\n      subvolumes: [\"@home\", \"@media\"]\n      cron: \"0 * * * *\"\n      retention: {hourly: 24, daily: 14}\n")
	page := d.url + "/pools/" + pool.UUID
	b := newBrowser(t, 1440, 900, "light", true)
	b.do(chromedp.Navigate(page))
	b.click("#p" + pool.UUID + "-do-snapshot")
	b.says("The token, please")
	b.do(chromedp.SendKeys(chromedp.CSS("#token"), theToken))
	b.click("form[action='/session'] button")
	b.says("The snapshots are being taken.")
	b.do(chromedp.Navigate(page))
	b.says("/@media 1")
	b.click("#p" + pool.UUID + "-do-scrub")
	within(b.ctx, t, 10*time.Minute, "the damaged file is named", func() bool { return strings.Contains(b.text(), "holiday.mp4") })
	b.click("#p" + pool.UUID + "-do-pause")
	b.says("Resume")
	shoot := func(name string) {
		t.Helper()
		b.do(chromedp.Navigate(page))
		b.says("Live")
		// Where the rig mounted the pool, and on which machine, is of no interest.
		evaluate[bool](b, `document.querySelector(".facts span").textContent = "/srv/attic", document.querySelector(".host").textContent = "homeserver", true`)
		picture := get(b, chromedp.FullScreenshot(100))
		must(t, os.WriteFile(filepath.Join(*screenshots, name), picture, 0o644))
	}
	shoot("status-page.png")
	b.click(".ask button")
	b.says("could be written")
	picture := get(b, chromedp.Screenshot(chromedp.CSS(".whatif")))
	must(t, os.WriteFile(filepath.Join(*screenshots, "what-if.png"), picture, 0o644))

	b.look(375, 812, "dark")
	shoot("status-page-phone.png")
}

// fillHistory makes the history of a pool that fills up.
func fillHistory(t *testing.T, dir string, pool *btrfstest.Pool) {
	t.Helper()
	uuid, err := btrfs.ParseUUID(pool.UUID)
	must(t, err)
	now := time.Now()
	at := now.Add(-60 * 24 * time.Hour).Truncate(history.Step)
	store, err := history.Open(log.NewNopLogger(), state.NewDir(dir), func() time.Time { return at })
	must(t, err)
	noise := rand.New(rand.NewPCG(3, 4))
	free := 7000.0
	for ; at.Before(now); at = at.Add(history.Step) {
		// Most is copied in the evening, and more at the weekend.
		if at.Hour() >= 18 {
			free -= noise.Float64() * 3.4
			if at.Weekday() == time.Saturday {
				free -= noise.Float64() * 2
			}
		}
		must(t, store.Add(uuid, history.Sample{Time: at, FreeExpected: btrfs.Some(uint64(free * (1 << 30)))}))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
