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
// line of it. However large a journal is, no more of it than a line is in memory.
const (
	maxJournal     = 64 << 20
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
// first; line keeps none of the bytes that it gets. One that is not there is empty,
// and is made by the first Write. Lines that are no JSON, or that line refuses, are
// left out: then the whole file is copied to NAME.damaged, and the error is
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
	if err := j.leaveOut(good); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, fmt.Errorf("state file %s %w as %s.damaged, but for its good lines: %w", d.Path(name), ErrDamaged, name, damaged)
}

// span is a part of a file.
type span struct{ from, to int64 }

// read passes all good lines on and returns where they are, and what is wrong with
// the first that is not. What follows the last line break was never written whole.
func (j *Journal) read(line func([]byte) error) (good []span, damaged, err error) {
	lines := bufio.NewReaderSize(io.LimitReader(j.file.Load(), maxJournal+1), maxJournalLine+1)
	for n := 1; ; n++ {
		text, length, err := readLine(lines)
		if j.size+length > maxJournal {
			return nil, nil, fmt.Errorf("%s is larger than %d bytes", j.dir.Path(j.name), maxJournal)
		}
		if errors.Is(err, io.EOF) {
			if length > 0 {
				if err := j.file.Load().Truncate(j.size); err != nil {
					return nil, nil, err
				}
			}
			return good, damaged, nil
		}
		if err != nil {
			return nil, nil, err
		}
		from := j.size
		j.size += length
		var bad error
		switch {
		case length > maxJournalLine:
			bad = fmt.Errorf("it has %d bytes", length)
		case !json.Valid(text):
			bad = errors.New("it is no JSON")
		default:
			bad = line(bytes.TrimSpace(text))
		}
		switch last := len(good) - 1; {
		case bad != nil && damaged == nil:
			damaged = fmt.Errorf("line %d: %w", n, bad)
		case bad != nil:
		case last >= 0 && good[last].to == from:
			good[last].to = j.size
		default:
			good = append(good, span{from, j.size})
		}
	}
}

// readLine reads one line, which is in the buffer of lines until the next is read,
// and tells its length. Of one that the buffer does not hold it returns the end.
func readLine(lines *bufio.Reader) (text []byte, length int64, err error) {
	for {
		text, err = lines.ReadSlice('\n')
		length += int64(len(text))
		if !errors.Is(err, bufio.ErrBufferFull) {
			return text, length, err
		}
	}
}

// leaveOut copies the file to NAME.damaged, and has only its good parts stay.
func (j *Journal) leaveOut(good []span) error {
	content := j.file.Load()
	damaged, err := j.dir.replaceFile(j.name+".damaged", func(f *os.File) error {
		_, err := io.Copy(f, io.NewSectionReader(content, 0, j.size))
		return err
	})
	if damaged != nil {
		err = errors.Join(err, damaged.Close())
	}
	if err != nil {
		return fmt.Errorf("keep a copy of a damaged state file: %w", err)
	}
	return j.replace(func(w io.Writer) error {
		for _, s := range good {
			if _, err := io.Copy(w, io.NewSectionReader(content, s.from, s.to-s.from)); err != nil {
				return err
			}
		}
		return nil
	})
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
	file := j.file.Load()
	if file == nil {
		return j.Rewrite(values)
	}
	var text bytes.Buffer
	if err := encodeLines(&text, values); err != nil {
		return fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err)
	}
	if _, err := file.WriteAt(text.Bytes(), j.size); err != nil {
		return errors.Join(fmt.Errorf("write state file %s: %w", j.dir.Path(j.name), err), file.Truncate(j.size))
	}
	j.size += int64(text.Len())
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
	return j.replace(func(w io.Writer) error { return encodeLines(w, values) })
}

// replace puts what write writes in place of the file.
func (j *Journal) replace(write func(io.Writer) error) error {
	size := int64(0)
	file, err := j.dir.replaceFile(j.name, func(f *os.File) error {
		buffered := bufio.NewWriter(f)
		err := errors.Join(write(buffered), buffered.Flush())
		if err == nil {
			size, err = f.Seek(0, io.SeekCurrent)
		}
		return err
	})
	if file != nil {
		if old := j.file.Swap(file); old != nil {
			_ = old.Close() // nothing of it is needed
		}
		j.size = size
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

// encodeLines writes each value as a line. It has one of them in memory at a time.
func encodeLines(w io.Writer, values []any) error {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	for _, v := range values {
		line.Reset()
		if err := encoder.Encode(v); err != nil {
			return err
		}
		if n := line.Len(); n > maxJournalLine {
			return fmt.Errorf("a value has %d bytes, more than the %d of a line", n, maxJournalLine)
		}
		if _, err := line.WriteTo(w); err != nil {
			return err
		}
	}
	return nil
}
