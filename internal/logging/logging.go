// Package logging makes the program's loggers. All of them write the same
// lines to the same place; the code logs with go-kit, and the standard
// library's loggers exist only for the libraries that ask for one.
package logging

import (
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	sloggokit "github.com/tjhop/slog-gokit"
)

// timestampFormat is RFC 3339 with milliseconds.
const timestampFormat = "2006-01-02T15:04:05.000Z07:00"

// Levels are the names of the log levels, the most talkative first.
func Levels() []string { return []string{"debug", "info", "warn", "error"} }

// Formats are the names of the line formats.
func Formats() []string { return []string{"logfmt", "json"} }

// Loggers are the program's loggers.
type Loggers struct {
	// Logger is the one that our own code uses, always by way of package
	// level (which the caller in the line depends on).
	Logger log.Logger
	// Slog is for exporter-toolkit.
	Slog *slog.Logger
	// Server is for what net/http has to say about its connections, such as
	// TLS handshakes that failed. Its lines have the level warn.
	Server *stdlog.Logger
}

// New returns loggers that write lines with a UTC timestamp, the caller and a
// level, of minLevel (one of Levels) and above, in a format (one of Formats).
func New(w io.Writer, minLevel, format string) (*Loggers, error) {
	parsed, err := level.Parse(minLevel)
	if err != nil {
		return nil, fmt.Errorf("log level %q is none of %s", minLevel, strings.Join(Levels(), ", "))
	}
	var slogLevel slog.Level
	if err := slogLevel.UnmarshalText([]byte(minLevel)); err != nil {
		return nil, fmt.Errorf("log level %q is none of %s", minLevel, strings.Join(Levels(), ", "))
	}

	var base log.Logger
	switch format {
	case "logfmt":
		base = log.NewLogfmtLogger(log.NewSyncWriter(w))
	case "json":
		base = log.NewJSONLogger(log.NewSyncWriter(w))
	default:
		return nil, fmt.Errorf("log format %q is none of %s", format, strings.Join(Formats(), ", "))
	}
	timestamp := log.TimestampFormat(func() time.Time { return time.Now().UTC() }, timestampFormat)

	// Between a caller and the stamp are the frames of level.Info's logger and
	// of the filter.
	const callerDepth = 5
	stamped := log.WithPrefix(base, "ts", timestamp, "caller", log.Caller(callerDepth))

	// The slog adapter adds the caller itself, and a time under another key
	// and in another format than ours.
	handler := sloggokit.NewGoKitHandler(withoutTime(log.WithPrefix(base, "ts", timestamp)), slogLevel)

	return &Loggers{
		Logger: level.NewFilter(stamped, level.Allow(parsed)),
		Slog:   slog.New(handler),
		Server: slog.NewLogLogger(handler, slog.LevelWarn),
	}, nil
}

func withoutTime(next log.Logger) log.Logger {
	return log.LoggerFunc(func(keyvals ...any) error {
		for i := 0; i+1 < len(keyvals); i += 2 {
			if keyvals[i] == slog.TimeKey {
				return next.Log(slices.Delete(keyvals, i, i+2)...)
			}
		}
		return next.Log(keyvals...)
	})
}
