package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"strconv"
	"time"
)

//go:embed templates
var templateFiles embed.FS

//go:embed assets
var assetFiles embed.FS

// Page is the whole page.
type Page struct {
	Host    string
	Version string
	Metrics string // path of the exposition
	Now     time.Time
	Control Control
	Live    string // the stream of what changes
	Message *Message
	// Token, if it is set, is asked for instead of showing the pools.
	Token *TokenForm
	// Summary is of all pools; nil on the page of one.
	Summary *Summary
	Pools   []*Pool // those that are shown in full
	// Only is the pool that the page is about, if it is one's own.
	Only  *Pool
	Empty string // why there is no pool, in a sentence
}

// Message is what became of something that was asked for.
type Message struct {
	Severity Severity
	Text     string
}

// TokenForm asks for the token.
type TokenForm struct {
	Host  string
	Words string // what is to be done then, such as "start a scrub"; may be empty
	Error string
	// Action and Pool are done when the token is right.
	Action, Pool string
}

// Renderer draws pages. It is safe for concurrent use.
type Renderer struct {
	templates *template.Template
	assets    map[string]Asset // by name
}

// Asset is a file that pages refer to. Its path changes with its content, so that
// it may be kept for good.
type Asset struct {
	Path string
	Type string
	Data []byte
}

// Sections are the parts of a pool that are drawn by themselves, in their order.
func Sections() []string { return append([]string{"title", "head"}, cards()...) }

// cards are those that stand in boxes.
func cards() []string { return []string{"state", "space", "devices", "losses", "scrub", "snapshots"} }

// SummaryID is the id of the element that holds the summary.
const SummaryID = "summary"

// NewRenderer reads the templates.
func NewRenderer() (*Renderer, error) {
	r := &Renderer{assets: make(map[string]Asset)}
	types := map[string]string{"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}
	for name, contentType := range types {
		data, err := fs.ReadFile(assetFiles, "assets/"+name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		r.assets[name] = Asset{Path: "/assets/" + hex.EncodeToString(sum[:6]) + "/" + name, Type: contentType, Data: data}
	}
	r.templates = template.New("")
	r.templates.Funcs(template.FuncMap{
		"asset": func(name string) (string, error) {
			a, ok := r.assets[name]
			if !ok {
				return "", fmt.Errorf("there is no asset %q", name)
			}
			return a.Path, nil
		},
		"cards": cards,
		"section": func(name string, p *Pool) (template.HTML, error) {
			text, err := r.Section(name, p)
			return template.HTML(text), err //nolint:gosec // a template made it
		},
		"percent": percent,
		"px":      func(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) },
		"action": func(p *Pool, action, words, class string) Button {
			return Button{ID: p.ID(), UUID: p.UUID, Name: p.Name, Action: action, Words: words, Class: class}
		},
	})
	_, err := r.templates.ParseFS(templateFiles, "templates/*.html")
	return r, err
}

// Button does something with a pool.
type Button struct{ ID, UUID, Name, Action, Words, Class string }

// Assets returns all assets.
func (r *Renderer) Assets() []Asset {
	all := make([]Asset, 0, len(r.assets))
	for _, a := range r.assets {
		all = append(all, a)
	}
	return all
}

// Head draws a page up to what a browser needs to ask for the assets.
func (r *Renderer) Head(w io.Writer, p *Page) error {
	return r.templates.ExecuteTemplate(w, "page-head", pageView{p})
}

// Body draws the rest of it.
func (r *Renderer) Body(w io.Writer, p *Page) error {
	return r.templates.ExecuteTemplate(w, "page-body", pageView{p})
}

// Section draws a section of a pool.
func (r *Renderer) Section(name string, p *Pool) ([]byte, error) {
	var b bytes.Buffer
	if err := r.templates.ExecuteTemplate(&b, name, p); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Summary draws the summary.
func (r *Renderer) Summary(s *Summary) ([]byte, error) {
	var b bytes.Buffer
	if err := r.templates.ExecuteTemplate(&b, "summary", s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Answer draws the answer to a what-if.
func (r *Renderer) Answer(w io.Writer, a *Answer) error {
	return r.templates.ExecuteTemplate(w, "answer", a)
}

// pageView is a page as the template sees it.
type pageView struct{ *Page }

// Now is the time of the page.
func (p pageView) Now() *moment { return &moment{At: p.Page.Now} }

// Summary is what is said of all pools.
type Summary struct {
	Headline string
	Missing  string // why there may be more pools, in a sentence
	List     []*Pool
}

// NewSummary sums up pools. The error says why some may be missing.
func NewSummary(pools []*Pool, err error) *Summary {
	s := &Summary{List: pools}
	if err != nil {
		s.Missing = sentence("not all pools could be found: " + err.Error())
	}
	bad := 0
	worst := Good
	for _, p := range pools {
		worst = max(worst, p.Worst)
		if p.Worst >= Warning {
			bad++
		}
	}
	switch {
	case len(pools) == 0:
		s.Headline = "No pool"
	case len(pools) == 1:
		s.Headline = pools[0].Headline()
	case bad == 0 && err != nil:
		s.Headline = fmt.Sprintf("The %d pools that were found are well", len(pools))
	case bad == 0:
		s.Headline = fmt.Sprintf("All %d pools are well", len(pools))
	case worst == Critical:
		s.Headline = fmt.Sprintf("%d of %d pools need a look now", bad, len(pools))
	default:
		s.Headline = fmt.Sprintf("%d of %d pools need a look", bad, len(pools))
	}
	return s
}

// Headline says how the pool is.
func (p *Pool) Headline() string {
	switch p.Worst {
	case Critical:
		return p.Name + " needs a look now"
	case Warning:
		return p.Name + " needs a look"
	}
	return p.Name + " is well"
}

// Link is where the pool has its page, or its place on the same one.
func (p *Pool) Link() string { return "/pools/" + p.UUID }
