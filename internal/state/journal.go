package state

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
)

// maxJournal bounds what is read of a journal, in bytes, and maxJournalLine one
// line of it.
const (
	maxJournal     = 256 << 20
	maxJournalLine = 1 << 20
)

// Journal is a state file of JSON values, one on each line, that grows at its
// end. What Write returned without an error outlives the process, and after Sync
// a crash of the machine; a line that was being written then is gone, and
// nothing before it. It is for one process, and but for Sync for one goroutine at
// a time.
type Journal struct {
	dir  *Dir
	name string
	file atomic.Pointer[os.File]
	size int64
}

// OpenJournal opens a journal and calls line for each of its lines, the oldest
// first. One that is not there is empty, and is made by the first Write. Lines that
// are no JSON, or that line refuses, are left out: then the whole file is copied to NAME.damaged, and the error is
// ErrDamaged; the journal is good all the same.
func (d *Dir) OpenJournal(name string, line func([]byte) error) (*Journal, error) {
	file, err := os.OpenFile(d.Path(name), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &Journal{dir: d, name: name}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open state file: %w", err)
	}
	j := &Journal{dir: d, name: name}
	j.file.Store(file)
	good, damaged, err := j.read(line)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read state file: %w", err), file.Close())
	}
	if damaged == nil {
		return j, nil
	}
	err = d.keepCopy(name)
	if err == nil {
		err = j.replace(good)
	}
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, fmt.Errorf("state file %s %w as %s.damaged, but for its good lines: %w", d.Path(name), ErrDamaged, name, damaged)
}

// read passes all good lines on and returns them, and what is wrong with the
// first that is not. What follows the last line break was never written whole.
func (j *Journal) read(line func([]byte) error) (good []byte, damaged, err error) {
	content := io.LimitReader(j.file.Load(), maxJournal+1)
	lines := bufio.NewReader(content)
	for n := 1; ; n++ {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(text) > 0 {
				if err := j.file.Load().Truncate(j.size); err != nil {
					return nil, nil, err
				}
			}
			return good, damaged, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if j.size += int64(len(text)); j.size > maxJournal {
			return nil, nil, fmt.Errorf("%s is larger than %d bytes", j.dir.Path(j.name), maxJournal)
		}
		var bad error
		switch {
		case len(text) > maxJournalLine:
			bad = fmt.Errorf("it has %d bytes", len(text))
		case !json.Valid(text):
			bad = errors.New("it is no JSON")
		default:
			bad = line(bytes.TrimSpace(text))
		}
		if bad == nil {
			good = append(good, text...)
		} else if damaged == nil {
			damaged = fmt.Errorf("line %d: %w", n, bad)
		}
	}
}

// keepCopy copies a file to NAME.damaged.
func (d *Dir) keepCopy(name string) error {
	data, err := os.ReadFile(d.Path(name))
	if err != nil {
		return fmt.Errorf("keep a copy of a damaged state file: %w", err)
	}
	return d.WriteFile(name+".damaged", data)
}

// Append is Write and Sync. With an error the values are not there.
func (j *Journal) Append(values ...any) error {
	before := j.size
	if err := j.Write(values...); err != nil {
		return err
	}
	err := j.Sync()
	if err != nil {
		// What was written of it must not be taken for good later.
		err = errors.Join(err, j.file.Load().Truncate(before))
		j.size = before
	}
	return err
}

// Write adds values, all or none of them.
func (j *Journal) Write(values ...any) error {
	if len(values) == 0 {
		return nil
	}
	text, err := encodeLines(values)
	if err != nil {
		return fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err)
	}
	file := j.file.Load()
	if file == nil {
		return j.replace(text)
	}
	if _, err := file.WriteAt(text, j.size); err != nil {
		return errors.Join(fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err), file.Truncate(j.size))
	}
	j.size += int64(len(text))
	return nil
}

// Sync returns when all that was written before is on the disk. It may be called
// by any goroutine at any time.
func (j *Journal) Sync() error {
	file := j.file.Load()
	if file == nil {
		return nil
	}
	// One that was replaced meanwhile is closed; the new one was synced.
	if err := file.Sync(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err)
	}
	return nil
}

// Rewrite replaces all values, so that a crash leaves the old ones or the new
// ones.
func (j *Journal) Rewrite(values []any) error {
	text, err := encodeLines(values)
	if err != nil {
		return fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err)
	}
	return j.replace(text)
}

func (j *Journal) replace(text []byte) error {
	file, err := j.dir.replaceFile(j.name, text)
	if file != nil {
		if old := j.file.Swap(file); old != nil {
			_ = old.Close() // nothing of it is needed
		}
		j.size = int64(len(text))
	}
	if err != nil {
		return fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err)
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	file := j.file.Load()
	if file == nil {
		return nil
	}
	if err := file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("close state file: %w", err)
	}
	return nil
}

func encodeLines(values []any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	for _, v := range values {
		before := text.Len()
		if err := encoder.Encode(v); err != nil {
			return nil, err
		}
		if n := text.Len() - before; n > maxJournalLine {
			return nil, fmt.Errorf("a value has %d bytes, more than the %d of a line", n, maxJournalLine)
		}
	}
	return text.Bytes(), nil
}
