package damage

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KernelLog reads the scrub messages of one pool from the kernel's log. It is
// for one goroutine at a time.
type KernelLog struct {
	fd      int
	devices map[string]bool
	buffer  []byte
}

// kernelLogPath is where the kernel gives its log to be read record by record
// (Documentation/ABI/testing/dev-kmsg).
const kernelLogPath = "/dev/kmsg"

// maxRecord is more than one record of /dev/kmsg has.
const maxRecord = 16 << 10

// OpenKernelLog opens the log at its end: what is logged from now on is read.
// The names are the kernel names of the pool's devices, of which the messages
// name one. It needs CAP_SYSLOG where kernel.dmesg_restrict is set.
func OpenKernelLog(names ...string) (*KernelLog, error) {
	fd, err := unix.Open(kernelLogPath, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", kernelLogPath, err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("find the end of %s: %w", kernelLogPath, err)
	}
	l := &KernelLog{fd: fd, devices: make(map[string]bool, len(names)), buffer: make([]byte, maxRecord)}
	for _, name := range names {
		l.devices[name] = true
	}
	return l, nil
}

// Close closes the log.
func (l *KernelLog) Close() error { return unix.Close(l.fd) }

// Read returns the messages since the last call, without waiting for one.
// complete is false where some are missing: the kernel has overwritten them, or
// has left messages out because there were too many. That it left some out it
// says with a later message and names no pool, so it may have been those of
// another, and may not have said so yet: count on the counters of the scrub.
func (l *KernelLog) Read() (messages []Message, complete bool, err error) {
	complete = true
	for {
		n, err := unix.Read(l.fd, l.buffer)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return messages, complete, nil
		case errors.Is(err, unix.EPIPE):
			complete = false // the next read is of the oldest record that is left
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return messages, false, fmt.Errorf("read %s: %w", kernelLogPath, err)
		case n == 0:
			return messages, complete, nil
		}
		text, ok := kernelText(string(l.buffer[:n]))
		if !ok {
			continue
		}
		if suppressed.MatchString(text) {
			complete = false
			continue
		}
		if m, ok := ParseLine(text); ok && l.devices[m.Pool] {
			messages = append(messages, m)
		}
	}
}

// suppressed matches what the kernel says of messages that it left out
// (lib/ratelimit.c), by the name of the function that wrote them.
var suppressed = regexp.MustCompile(`^(?:scrub|_*btrfs)_\w+: \d+ callbacks suppressed$`)

// kernelText returns the message of a record that the kernel itself wrote:
// "priority,sequence,microseconds,flags;message\n", and lines of further facts
// that begin with a space. Whatever a program writes has another facility.
func kernelText(record string) (string, bool) {
	header, text, ok := strings.Cut(record, ";")
	if !ok {
		return "", false
	}
	number, _, _ := strings.Cut(header, ",")
	priority, err := strconv.ParseUint(number, 10, 32)
	if err != nil || priority>>3 != 0 {
		return "", false
	}
	text, _, _ = strings.Cut(text, "\n")
	return unescape(text), true
}

// unescape undoes the \xNN of bytes that are not printable ASCII, and of the
// backslash.
func unescape(text string) string {
	if !strings.Contains(text, `\x`) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		if len(text) >= 4 && text[:2] == `\x` {
			if n, err := strconv.ParseUint(text[2:4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				text = text[4:]
				continue
			}
		}
		b.WriteByte(text[0])
		text = text[1:]
	}
	return b.String()
}
