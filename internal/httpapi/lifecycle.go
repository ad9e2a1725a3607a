package httpapi

import (
	"fmt"
	"net/http"
)

func healthy() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "btrfs-governor is healthy.")
	})
}

func ready(isReady func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !isReady() {
			http.Error(w, "btrfs-governor is starting or stopping.", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "btrfs-governor is ready.")
	})
}

// reload reads the configuration again. It changes no pool: from this machine's
// loopback address it needs no token.
func (a *api) reload() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() { a.audit(r, sw.status, "") }()
		if !overAPISocket(r) && !fromThisMachine(r) {
			if a.cfg.Token == nil {
				problemf(http.StatusForbidden, "Reloading is allowed from this machine only: send the request to a loopback address, or SIGHUP to the process.").write(sw)
				return
			}
			if refused := a.authorise(r); refused != nil {
				refused.write(sw)
				return
			}
		}
		if err := a.cfg.Reload(); err != nil {
			problemf(http.StatusInternalServerError, "The configuration stays as it was: %v", err).write(sw)
			return
		}
		fmt.Fprintln(sw, "The configuration is reloaded.")
	})
}
