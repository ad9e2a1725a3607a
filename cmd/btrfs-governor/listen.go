package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/mdlayher/vsock"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/logging"
)

// stopTimeout is how long a stop waits for running requests: longer than a
// scrape takes by default, and well below the 90 s after which systemd kills.
const stopTimeout = 15 * time.Second

// listen opens all listeners of the flags, or none.
func listen(ctx context.Context, flags *web.FlagConfig) ([]net.Listener, error) {
	if *flags.WebSystemdSocket {
		return activated()
	}
	var listeners []net.Listener
	for _, address := range *flags.WebListenAddresses {
		l, err := listenOn(ctx, address)
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func listenOn(ctx context.Context, address string) (net.Listener, error) {
	if strings.HasPrefix(address, "vsock:") {
		port, err := vsockPort(address)
		if err != nil {
			return nil, err
		}
		l, err := vsock.Listen(port, nil)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		return l, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the address is in use; stop the program that has it, or choose another with --web.listen-address", address)
	case err != nil:
		return nil, fmt.Errorf("--web.listen-address=%s: %w", address, err)
	}
	return l, nil
}

func vsockPort(address string) (uint32, error) {
	u, err := url.Parse(address)
	if err == nil {
		var port uint64
		if port, err = strconv.ParseUint(u.Port(), 10, 32); err == nil {
			return uint32(port), nil
		}
	}
	return 0, fmt.Errorf("--web.listen-address=%s is no vsock address such as vsock://:10134", address)
}

// activated returns the sockets that systemd opened for us.
func activated() ([]net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take the sockets from systemd: %w", err)
	}
	if len(listeners) == 0 {
		return nil, errors.New("--web.systemd-socket: systemd passed no socket; start the program through a .socket unit")
	}
	for _, l := range listeners {
		if l == nil {
			return nil, errors.New("--web.systemd-socket: systemd passed a socket that takes no connections; the .socket unit may only hold ListenStream=")
		}
	}
	return listeners, nil
}

// server is the task that answers the requests of one listener.
//
// Each listener has its own http.Server, since exporter-toolkit changes the
// one that it is given.
type server struct {
	listener net.Listener
	http     *http.Server
	flags    *web.FlagConfig
	logs     *logging.Loggers
}

func newServer(l net.Listener, handler http.Handler, flags *web.FlagConfig, logs *logging.Loggers) *server {
	s := &server{listener: l, http: httpapi.NewServer(handler), flags: flags, logs: logs}
	s.http.ErrorLog = logs.Server
	return s
}

// Run serves until ctx is done, and then waits for the requests that are
// running, up to stopTimeout.
func (s *server) Run(ctx context.Context) error {
	defer s.listener.Close()
	return serveUntil(ctx, s.http, s.listener.Addr(), s.logs.Logger, func() error {
		return web.Serve(s.listener, s.http, s.flags, s.logs.Slog)
	})
}

// serveUntil serves until ctx is done, and then waits for the requests that are
// running, up to stopTimeout.
func serveUntil(ctx context.Context, server *http.Server, address net.Addr, logger log.Logger, serve func() error) error {
	served := make(chan error, 1)
	go func() { served <- serve() }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", address, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		level.Warn(logger).Log("msg", "Gave up waiting for running requests", "address", address, "err", err)
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", address, err)
	}
	return nil
}
