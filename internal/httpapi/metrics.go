package httpapi

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsHandler answers a scrape, with collect[]=NAME parameters of those
// collectors only.
type metricsHandler struct {
	cfg        Config
	unfiltered http.Handler
	slots      chan struct{} // one for each scrape at once; nil: no limit
	packer     *packer
}

func newMetricsHandler(cfg Config) (*metricsHandler, error) {
	h := &metricsHandler{cfg: cfg, packer: newPacker()}
	if cfg.MaxRequests > 0 {
		h.slots = make(chan struct{}, cfg.MaxRequests)
	}
	var err error
	h.unfiltered, err = h.handlerFor()
	return h, err
}

// handlerFor returns a handler of the named collectors, or of all.
func (h *metricsHandler) handlerFor(names ...string) (http.Handler, error) {
	pools, err := h.cfg.Pools.Collector(names...)
	if err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	collectors := h.cfg.Process
	text, writesText := pools.(textAppender)
	if !writesText {
		collectors = append([]prometheus.Collector{pools}, collectors...)
	}
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics: %w", err)
		}
	}
	if writesText {
		return &expositionHandler{
			pools: text, process: registry, log: gatherLog{h.cfg.Logger}, packer: h.packer, keep: len(names) == 0,
		}, nil
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:      gatherLog{h.cfg.Logger},
		ErrorHandling: promhttp.ContinueOnError,
	}), nil
}

func (h *metricsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.slots != nil {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		default:
			http.Error(w, fmt.Sprintf("%d scrapes are running already, the most that --web.max-requests allows.", cap(h.slots)), http.StatusServiceUnavailable)
			return
		}
	}
	names := r.URL.Query()["collect[]"]
	if len(names) == 0 {
		h.unfiltered.ServeHTTP(w, r)
		return
	}
	filtered, err := h.handlerFor(names...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	filtered.ServeHTTP(w, r)
}

// gatherLog logs what promhttp has to say about a scrape that it could not
// answer in full.
type gatherLog struct{ logger log.Logger }

func (g gatherLog) Println(v ...any) {
	level.Error(g.logger).Log("msg", "scrape is incomplete", "err", strings.TrimSpace(fmt.Sprintln(v...)))
}
