package logging_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/internal/logging"
)

func TestLoggersWriteTheSameKindOfLine(t *testing.T) {
	var out bytes.Buffer
	l, err := logging.New(&out, "info", "logfmt")
	if err != nil {
		t.Fatal(err)
	}
	level.Info(l.Logger).Log("msg", "one", "pool", "tank")
	l.Slog.Info("one", "pool", "tank")

	line := regexp.MustCompile(`^ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (caller=logging_test\.go:\d+ level=info|level=info caller=logging_test\.go:\d+) msg=one pool=tank$`)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %d lines, want 2: %q", len(lines), out.String())
	}
	for _, got := range lines {
		if !line.MatchString(got) {
			t.Errorf("line %q does not match %s", got, line)
		}
	}
}

func TestLevelFiltersAllLoggers(t *testing.T) {
	for _, tt := range []struct {
		level string
		want  int // lines of the seven that are logged
	}{{"debug", 7}, {"info", 5}, {"warn", 3}, {"error", 1}} {
		t.Run(tt.level, func(t *testing.T) {
			var out bytes.Buffer
			l, err := logging.New(&out, tt.level, "logfmt")
			if err != nil {
				t.Fatal(err)
			}
			level.Debug(l.Logger).Log("msg", "x")
			l.Slog.Debug("x")
			level.Info(l.Logger).Log("msg", "x")
			l.Slog.Info("x")
			level.Warn(l.Logger).Log("msg", "x")
			l.Server.Print("x")
			level.Error(l.Logger).Log("msg", "x")
			if got := strings.Count(out.String(), "\n"); got != tt.want {
				t.Errorf("got %d lines, want %d:\n%s", got, tt.want, out.String())
			}
		})
	}
}

func TestJSONLinesAreJSON(t *testing.T) {
	var out bytes.Buffer
	l, err := logging.New(&out, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	level.Warn(l.Logger).Log("msg", "a \"quoted\"\nmessage")
	l.Slog.Warn("another", "count", 3)
	for line := range strings.Lines(out.String()) {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		for _, key := range []string{"ts", "caller", "level", "msg"} {
			if got[key] == nil {
				t.Errorf("%q has no %s", line, key)
			}
		}
	}
}

func TestUnknownLevelAndFormatAreErrors(t *testing.T) {
	if _, err := logging.New(&bytes.Buffer{}, "loud", "logfmt"); err == nil || !strings.Contains(err.Error(), `"loud"`) {
		t.Errorf("level loud: got %v", err)
	}
	if _, err := logging.New(&bytes.Buffer{}, "info", "xml"); err == nil || !strings.Contains(err.Error(), `"xml"`) {
		t.Errorf("format xml: got %v", err)
	}
}
