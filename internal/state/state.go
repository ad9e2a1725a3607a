// Package state keeps small files that outlive the process. A file is whole or
// not there: it is written beside, synced and renamed. One that is damaged is
// set aside and never stops the daemon.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxSize bounds what is read of a file, in bytes.
const maxSize = 16 << 20

// Dir is the state directory. Its methods may be called from any goroutine;
// of two that write the same file at once, one wins whole.
type Dir struct{ path string }

// NewDir returns the state directory at a path, which must exist.
func NewDir(path string) *Dir { return &Dir{path} }

// Path returns the path of a file in the directory.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// ErrDamaged is returned by LoadJSON for a file that cannot be what was
// written. It has been renamed to NAME.damaged, over an earlier one.
var ErrDamaged = errors.New("is damaged and was set aside")

// WriteFile writes a file of mode 0600 so that a crash at any point leaves
// either the old content or the new one.
func (d *Dir) WriteFile(name string, data []byte) error {
	if err := d.writeFile(name, data); err != nil {
		return fmt.Errorf("write state file %s: %w", d.Path(name), err)
	}
	return nil
}

func (d *Dir) writeFile(name string, data []byte) error {
	f, err := d.replaceFile(name, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return err
}

// replaceFile has write write the new content, and also returns the file, open.
// With an error it is the one that has the name now, or nil where that is still
// the old one.
func (d *Dir) replaceFile(name string, write func(*os.File) error) (*os.File, error) {
	f, err := os.CreateTemp(d.path, "."+name+".tmp-*") // 0600
	if err != nil {
		return nil, err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), d.Path(name))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, syncDir(d.path)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// ReadFile reads a file. One that is not there is fs.ErrNotExist.
func (d *Dir) ReadFile(name string) ([]byte, error) {
	f, err := os.Open(d.Path(name))
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("read state file %s: it is larger than %d bytes", d.Path(name), maxSize)
	}
	return data, nil
}

// SaveJSON writes a value as JSON, see WriteFile.
func (d *Dir) SaveJSON(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write state file %s: %w", d.Path(name), err)
	}
	return d.WriteFile(name, append(data, '\n'))
}

// LoadJSON reads what SaveJSON wrote into value, and lets check look at it. A
// file that is not there is fs.ErrNotExist. One that is no such JSON, or that
// check refuses, is set aside; the error is then ErrDamaged, and says why.
func (d *Dir) LoadJSON(name string, value any, check func() error) error {
	data, err := d.ReadFile(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return d.setAside(name, err)
	}
	if err := json.Unmarshal(data, value); err != nil {
		return d.setAside(name, err)
	}
	if err := check(); err != nil {
		return d.setAside(name, err)
	}
	return nil
}

func (d *Dir) setAside(name string, why error) error {
	err := fmt.Errorf("state file %s %w as %s.damaged: %w", d.Path(name), ErrDamaged, name, why)
	if renameErr := os.Rename(d.Path(name), d.Path(name+".damaged")); renameErr != nil {
		return errors.Join(err, renameErr)
	}
	return err
}

// Remove removes a file. One that is not there is no error.
func (d *Dir) Remove(name string) error {
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state file: %w", err)
	}
	return nil
}

// Names returns the names of the files that match a pattern of path.Match.
func (d *Dir) Names(pattern string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(d.path, pattern))
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths, err
}
