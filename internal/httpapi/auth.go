package httpapi

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"
)

// peerKey is the key of the credentials of a Unix socket's peer in a request's
// context.
type peerKey struct{}

// NewSocketServer returns a server for the Unix socket of the API: whoever the
// permissions of the socket let in may change things. Other Unix sockets, such
// as one that systemd passed to the web server, give no such right: everybody
// may connect to them by default, and a proxy in front makes everybody local.
func NewSocketServer(handler http.Handler) *http.Server {
	s := NewServer(handler)
	s.ConnContext = connContext
	return s
}

// connContext notes who is at the other end of the socket of the API.
func connContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	peer := "unix socket"
	if raw, err := u.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				peer = fmt.Sprintf("unix socket, uid %d, pid %d", cred.Uid, cred.Pid)
			}
		})
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// overAPISocket tells whether a request came over the socket of the API, which
// its file permissions guard.
func overAPISocket(r *http.Request) bool {
	_, ok := r.Context().Value(peerKey{}).(string)
	return ok
}

// overUnixSocket tells whether a request came over any Unix socket.
func overUnixSocket(r *http.Request) bool {
	_, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return ok
}

// requester says who sent a request.
func requester(r *http.Request) string {
	if peer, ok := r.Context().Value(peerKey{}).(string); ok {
		return peer
	}
	if overUnixSocket(r) {
		return "unix socket of the web server"
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}

// fromThisMachine tells whether a request comes from this machine, and no proxy
// says that it passed it on: then who sent it is not who is connected. An empty
// header counts too, for a proxy may have added another one behind it.
func fromThisMachine(r *http.Request) bool {
	for name := range r.Header {
		if name == "Forwarded" || name == "X-Real-Ip" || name == "Via" || strings.HasPrefix(name, "X-Forwarded-") {
			return false
		}
	}
	if overUnixSocket(r) {
		return true
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback()
}

// authorise returns why a request may not change anything, or nil. Basic auth
// authorises no change.
func (a *api) authorise(r *http.Request) *problem {
	if a.cfg.Token == nil {
		return problemf(http.StatusForbidden, "The daemon runs with --read-only: nothing can be changed through it.")
	}
	if overAPISocket(r) {
		return nil
	}
	// Before the token is looked at: one sent in the clear over a network is
	// no secret any more, right or wrong.
	if r.TLS == nil && !fromThisMachine(r) {
		return problemf(http.StatusForbidden, "Over plain HTTP a change is accepted from this machine's loopback address only, and not through a proxy: "+
			"set up TLS in --web.config.file, or use the Unix socket.")
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return problemf(http.StatusUnauthorized, "This changes something: send the header \"Authorization: Bearer TOKEN\" (`btrfs-governor token` prints the token), or use the Unix socket.")
	}
	if !a.cfg.Token.matches(strings.TrimSpace(token)) {
		return problemf(http.StatusUnauthorized, "The bearer token is wrong: `btrfs-governor token` prints the right one.")
	}
	return nil
}

// audit logs a request that changes something, or would have.
func (a *api) audit(r *http.Request, status int, jobID string) {
	keyvals := []any{
		"msg", "Request", "who", requester(r), "method", r.Method, "path", shorten(r.URL.Path), "query", loggedQuery(r.URL.RawQuery), "status", status,
	}
	if jobID != "" {
		keyvals = append(keyvals, "job", jobID)
	}
	level.Info(a.cfg.Logger).Log(keyvals...)
}

// loggedQuery is the query as the log may hold it: somebody may have put the
// token there.
func loggedQuery(query string) string {
	if strings.Contains(strings.ToLower(query), "token") {
		return "(hidden: it names a token)"
	}
	return shorten(query)
}

// shorten bounds what a client can make us write.
func shorten(text string) string {
	const most = 200
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
