package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
)

// DefaultHookTimeout is how long a hook may take unless the configuration says
// otherwise.
const DefaultHookTimeout = time.Minute

// hookKillWait is how long what a hook started may go on after it was killed.
const hookKillWait = 5 * time.Second

// hookEnvironment is what hooks are told.
func (p *pool) hookEnvironment(jobID string, made []record) []string {
	names := make([]string, len(made))
	for i := range made {
		names[i] = made[i].Name
	}
	return []string{
		"BTRFS_GOVERNOR_POOL=" + p.uuid.String(),
		"BTRFS_GOVERNOR_LABEL=" + p.runner.client.Label(p.uuid),
		"BTRFS_GOVERNOR_JOB=" + jobID,
		"BTRFS_GOVERNOR_SNAPSHOTS=" + strings.Join(names, "\n"),
	}
}

func (h *Hooks) before(ctx context.Context, logger log.Logger, environment []string) error {
	return h.run(ctx, logger, "before", h.Before, environment)
}

// after also runs where before failed, and while the daemon stops: it may have
// to undo what before did.
func (h *Hooks) after(ctx context.Context, logger log.Logger, environment []string) error {
	return h.run(context.WithoutCancel(ctx), logger, "after", h.After, environment)
}

func (h *Hooks) run(ctx context.Context, logger log.Logger, when string, command, environment []string) error {
	if len(command) == 0 {
		return nil
	}
	timeout := h.Timeout
	if timeout <= 0 {
		timeout = DefaultHookTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // it comes from the configuration only
	c.Env = append(os.Environ(), append(environment, "BTRFS_GOVERNOR_HOOK="+when)...)
	output := &tail{most: 4 << 10}
	c.Stdout, c.Stderr = output, output
	// Whatever it starts ends with it.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = hookKillWait
	// It ends with us; the kernel looks at the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) { // that is 0, and a child that holds the output
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("killed after %s: %w", timeout, context.DeadlineExceeded)
	}
	// What it says is for the log alone: a job is seen by all who can see metrics.
	if said := strings.TrimSpace(output.String()); said != "" {
		level.Error(logger).Log("msg", "what a hook said that failed", "hook", when, "output", said)
		err = fmt.Errorf("%w (the log has what it said)", err)
	}
	return fmt.Errorf("hook %s, %s: %w", when, command[0], err)
}

// tail keeps the last bytes of what is written.
type tail struct {
	most int
	text []byte
}

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if over := len(t.text) - t.most; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string { return strings.ToValidUTF8(string(t.text), "�") }
