// Command prometheus3 reads files of rules as Prometheus 3 does, with the code of
// Prometheus itself, and says what is wrong with them. The tests of package alerts
// run Debian's Prometheus 2, and there is no package of 3. It is a module of its
// own, so that nothing else depends on Prometheus.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	if err := check(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(files []string) error {
	if len(files) == 0 {
		return errors.New("no file of rules is named")
	}
	for _, file := range files {
		groups, errs := rulefmt.ParseFile(file, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.Default())
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		rules := 0
		for i := range groups.Groups {
			rules += len(groups.Groups[i].Rules)
		}
		if rules == 0 {
			return fmt.Errorf("%s has no rules", file)
		}
		fmt.Printf("%s: %d rules, read as Prometheus %s does\n", file, rules, version())
	}
	return nil
}

// version is that of the Prometheus whose code this is: v0.316.0 is 3.16.0
// (github.com/prometheus/prometheus, README, "Prometheus code base as a library").
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "3"
	}
	for _, dependency := range info.Deps {
		if dependency.Path == "github.com/prometheus/prometheus" {
			return dependency.Version
		}
	}
	return "3"
}
