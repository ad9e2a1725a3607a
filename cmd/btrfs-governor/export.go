package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kingpin/v2"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/dashboards"
)

// exportCommand is one of the commands below `btrfs-governor export`.
type exportCommand struct {
	name      string
	files     embed.FS
	names     []string // of the files
	directory string
	overwrite bool
	dryRun    bool
}

// newExportCommands adds `export dashboards` and its like.
func newExportCommands(app *kingpin.Application) []*exportCommand {
	group := app.Command("export", "Write the files for Grafana and Prometheus that belong to this version.")
	var all []*exportCommand
	for _, what := range []struct {
		name, help string
		files      embed.FS
		names      []string
	}{
		{"dashboards", "Write the dashboards, for Grafana 10 and later.", dashboards.Files, dashboards.Names()},
		{"alerts", "Write the recording and alerting rules, for Prometheus 2.42 and later.", alerts.Files, []string{alerts.FileName}},
	} {
		cmd := group.Command(what.name, what.help)
		c := &exportCommand{name: cmd.FullCommand(), files: what.files, names: what.names}
		cmd.Arg("dir", "The directory to write to.").Required().StringVar(&c.directory)
		cmd.Flag("overwrite", "Replace files that are there and differ.").BoolVar(&c.overwrite)
		cmd.Flag("dry-run", "Say what would be done, and do nothing.").BoolVar(&c.dryRun)
		all = append(all, c)
	}
	return all
}

// export is a file to write.
type export struct {
	path        string
	data        []byte
	there, same bool // whether there is one, and whether it is what would be written
}

// run looks at all files before it writes the first.
func (c *exportCommand) run(_ context.Context, stdout, _ io.Writer) error {
	if err := c.checkDirectory(); err != nil {
		return err
	}
	var exports []export
	var differ []string
	for _, name := range c.names {
		e, err := c.compare(name)
		if err != nil {
			return err
		}
		exports = append(exports, e)
		if e.there && !e.same {
			differ = append(differ, e.path)
		}
	}
	if len(differ) > 0 && !c.overwrite {
		return fmt.Errorf("%s: there already, and not what would be written; nothing was written. Give --overwrite to replace it, or another directory", strings.Join(differ, ", "))
	}
	for _, e := range exports {
		switch {
		case e.same:
			fmt.Fprintf(stdout, "%s is up to date\n", e.path)
		case c.dryRun && e.there:
			fmt.Fprintf(stdout, "would replace %s\n", e.path)
		case c.dryRun:
			fmt.Fprintf(stdout, "would write %s\n", e.path)
		default:
			if err := e.write(); err != nil {
				return err
			}
			fmt.Fprintf(stdout, "wrote %s\n", e.path)
		}
	}
	return nil
}

// checkDirectory wants one that is there: a slip of the pen makes none.
func (c *exportCommand) checkDirectory() error {
	info, err := os.Stat(c.directory)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no directory %s: make it first, or name another one", c.directory)
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory: name the one that the files go to", c.directory)
	}
	return nil
}

func (c *exportCommand) compare(name string) (export, error) {
	data, err := c.files.ReadFile(name)
	if err != nil {
		return export{}, fmt.Errorf("export: %w", err)
	}
	e := export{path: filepath.Join(c.directory, name), data: data}
	info, err := os.Stat(e.path)
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil
	}
	if err != nil {
		return export{}, fmt.Errorf("export: %w", err)
	}
	if !info.Mode().IsRegular() {
		return export{}, fmt.Errorf("%s is no file: nothing was written", e.path)
	}
	old, err := os.ReadFile(e.path)
	if err != nil {
		return export{}, fmt.Errorf("export: %w", err)
	}
	e.there, e.same = true, bytes.Equal(old, data)
	return e, nil
}

// write makes the file so that it is whole or not there. One that was not there
// when it was looked for is not replaced, should there be one now.
func (e *export) write() error {
	if err := e.writeAndName(); err != nil {
		return fmt.Errorf("export %s: %w", e.path, err)
	}
	return nil
}

func (e *export) writeAndName() error {
	f, err := os.CreateTemp(filepath.Dir(e.path), "."+filepath.Base(e.path)+".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(e.data)
	if err == nil {
		err = f.Chmod(0o644) // Grafana and Prometheus run as users of their own
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil && e.there {
		if err = os.Rename(f.Name(), e.path); err == nil {
			return nil
		}
	} else if err == nil {
		err = os.Link(f.Name(), e.path)
	}
	return errors.Join(err, os.Remove(f.Name()))
}
