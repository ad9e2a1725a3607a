package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// client talks to the daemon over its Unix socket.
type client struct {
	socket string
	http   *http.Client
}

func newClient(socket string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &client{socket, &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: answerTimeout}}
}

// answerTimeout is how long an answer may take: a disk that hangs can keep the
// daemon from it, which gives up sooner.
const answerTimeout = time.Minute

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 20

// errNoDaemon is returned where nobody answers on the socket.
var errNoDaemon = errors.New("the daemon does not run")

// do sends a request and decodes the answer. A problem is an error with its
// detail.
func (c *client) do(ctx context.Context, method, path string, parameters url.Values, answer any) error {
	target := "http://daemon" + path
	if len(parameters) > 0 {
		target += "?" + parameters.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, target, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers on %s; start it (`systemctl start btrfs-governor` or `btrfs-governor serve`), or name its socket with --api.socket", errNoDaemon, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open the socket %s of the daemon: %w: run this as root", c.socket, fs.ErrPermission)
	case err != nil:
		return fmt.Errorf("ask the daemon: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var p struct {
			Detail     string   `json:"detail"`
			Job        *job.Job `json:"job"`
			Candidates []string `json:"candidates"`
		}
		if json.Unmarshal(body, &p) != nil || p.Detail == "" {
			return fmt.Errorf("the daemon answers with %s", resp.Status)
		}
		detail := strings.TrimSuffix(p.Detail, ".")
		if p.Job != nil {
			detail += " (job " + p.Job.ID + ")"
		}
		if len(p.Candidates) > 0 {
			detail += ": " + strings.Join(p.Candidates, ", ")
		}
		return errors.New(detail)
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

func scrubPath(pool, more string) string {
	return "/api/v1/pools/" + url.PathEscape(pool) + "/scrub" + more
}

// findPool returns what names a pool for the daemon: of a path the UUID of its
// filesystem, and of nothing the only pool there is.
func (c *client) findPool(ctx context.Context, name string) (string, error) {
	if strings.Contains(name, "/") || name == "." || name == ".." {
		return uuidOfPath(name)
	}
	if name != "" {
		return name, nil
	}
	var answer struct {
		Pools []struct {
			UUID  string `json:"uuid"`
			Label string `json:"label"`
		} `json:"pools"`
	}
	if err := c.do(ctx, http.MethodGet, "/api/v1/pools", nil, &answer); err != nil {
		return "", err
	}
	if len(answer.Pools) == 1 {
		return answer.Pools[0].UUID, nil
	}
	var names []string
	for _, p := range answer.Pools {
		names = append(names, strings.TrimSpace(p.UUID+" "+p.Label))
	}
	return "", whichPool(names)
}

func whichPool(names []string) error {
	if len(names) == 0 {
		return errors.New("no btrfs pool is mounted")
	}
	return fmt.Errorf("which pool? Name one of: %s", strings.Join(names, ", "))
}

func uuidOfPath(path string) (string, error) {
	f, err := btrfs.OpenFilesystem(path)
	if err != nil {
		return "", err
	}
	return f.UUID().String(), f.Close()
}

func (c *client) scrubStatus(ctx context.Context, pool string) (scrub.Status, error) {
	var s scrub.Status
	err := c.do(ctx, http.MethodGet, scrubPath(pool, ""), nil, &s)
	return s, err
}
