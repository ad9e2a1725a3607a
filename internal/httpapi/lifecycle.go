package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
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

func reload(reload func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := reload(); err != nil {
			http.Error(w, "The configuration stays as it was: "+err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "The configuration is reloaded.")
	})
}

// localOnly refuses requests from other machines. A Unix socket is guarded by
// its file permissions.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r) {
			http.Error(w, "Reloading is allowed from this machine only: send the request to a loopback address, or SIGHUP to the process.", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLocal(r *http.Request) bool {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr); ok && local != nil {
		return true
	}
	// Behind a reverse proxy everybody comes from this machine.
	if r.Header.Get("Forwarded") != "" || r.Header.Get("X-Forwarded-For") != "" {
		return false
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback()
}
