package statusfile

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// SocketPath returns the path of the socket on which whoever scrubs a pool
// tells how far it is.
func SocketPath(dir string, pool btrfs.UUID) string {
	return filepath.Join(dir, "scrub.progress."+pool.String())
}

// ErrServed says that another program answers on the socket: it scrubs the
// pool.
var ErrServed = errors.New("another program scrubs the pool")

// Listen makes the socket of a pool, for Serve. While it is there, `btrfs scrub
// start` refuses: also between two calls of the kernel, when it would otherwise
// begin a scrub of its own and overwrite the file with zeros. A socket that a
// killed program left is replaced; one that answers is ErrServed. Closing the
// listener removes the socket.
func Listen(dir string, pool btrfs.UUID) (net.Listener, error) {
	path := SocketPath(dir, pool)
	l, err := listen(dir, path)
	if err != nil {
		return nil, fmt.Errorf("serve the scrub status on %s: %w", path, err)
	}
	return l, nil
}

func listen(dir, path string) (net.Listener, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	address := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", address)
	if errors.Is(err, unix.EADDRINUSE) {
		c, dialErr := net.DialUnix("unix", nil, address)
		if dialErr == nil {
			_ = c.Close()
			return nil, ErrServed
		}
		if !errors.Is(dialErr, unix.ECONNREFUSED) {
			return nil, dialErr
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		l, err = net.ListenUnix("unix", address)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// serveTimeout is how long one reader may take. The text fits into the buffer
// of a socket.
const serveTimeout = time.Second

// Serve writes what devices returns to each connection, one after the other,
// until the listener is closed; that is no error.
func Serve(l net.Listener, pool btrfs.UUID, devices func() []Device) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve the scrub status: %w", err)
		}
		// `btrfs scrub start` hangs up without reading.
		_ = c.SetWriteDeadline(time.Now().Add(serveTimeout))
		_, _ = c.Write(Format(pool, devices()))
		c.Close()
	}
}
