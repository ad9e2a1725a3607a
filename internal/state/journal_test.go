package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// openJournal opens a journal of numbers and returns those that it has.
func openJournal(t testing.TB, dir *Dir) (*Journal, []int, error) {
	t.Helper()
	var numbers []int
	j, err := dir.OpenJournal("j", func(line []byte) error {
		var n int
		if err := json.Unmarshal(line, &n); err != nil {
			return err
		}
		if n < 0 {
			return fmt.Errorf("%d is negative", n)
		}
		numbers = append(numbers, n)
		return nil
	})
	if j != nil {
		t.Cleanup(func() { _ = j.Close() })
	}
	return j, numbers, err
}

func TestJournalKeepsWhatWasAppended(t *testing.T) {
	dir := NewDir(t.TempDir())
	j, got, err := openJournal(t, dir)
	if err != nil || len(got) > 0 {
		t.Fatalf("new: %v, %v", got, err)
	}
	for _, values := range [][]any{{1, 2}, {}, {3}} {
		if err := j.Append(values...); err != nil {
			t.Fatal(err)
		}
	}
	j, got, err = openJournal(t, dir)
	if err != nil || !slices.Equal(got, []int{1, 2, 3}) {
		t.Fatalf("got %v, %v", got, err)
	}
	if err := j.Rewrite([]any{7, 8}); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(9); err != nil {
		t.Fatal(err)
	}
	if _, got, err = openJournal(t, dir); err != nil || !slices.Equal(got, []int{7, 8, 9}) {
		t.Errorf("after it was rewritten: %v, %v", got, err)
	}
	if info, err := os.Stat(dir.Path("j")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info, err)
	}
}

// A crash can cut off the last write anywhere.
func TestJournalForgetsAHalfWrittenLine(t *testing.T) {
	whole := "11\n22\n333\n"
	for cut := range len(whole) + 1 {
		dir := NewDir(t.TempDir())
		if err := os.WriteFile(dir.Path("j"), []byte(whole[:cut]), 0o600); err != nil {
			t.Fatal(err)
		}
		want := []int{11, 22, 333}[:strings.Count(whole[:cut], "\n")]
		j, got, err := openJournal(t, dir)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v, want %v", whole[:cut], got, err, want)
			continue
		}
		if err := j.Append(4); err != nil {
			t.Fatal(err)
		}
		if _, got, err := openJournal(t, dir); err != nil || !slices.Equal(got, append(slices.Clone(want), 4)) {
			t.Errorf("%q, and one more: %v, %v", whole[:cut], got, err)
		}
	}
}

func TestJournalLeavesDamagedLinesOut(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON": "1\n{[\n2\n", "refused": "1\n-5\n2\n", "zeros": "1\n\x00\x00\x00\n2\n", "empty line": "1\n\n2\n",
		"long": "1\n" + strings.Repeat("1", maxJournalLine+1) + "\n2\n", "far too long": "1\n" + strings.Repeat("1", 5*maxJournalLine) + "\n2\n",
		"several": "1\nx\ny\n2\nz\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := NewDir(t.TempDir())
			if err := os.WriteFile(dir.Path("j"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			j, got, err := openJournal(t, dir)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "line 2") || !slices.Equal(got, []int{1, 2}) {
				t.Fatalf("got %v, %v", got, err)
			}
			if kept, err := os.ReadFile(dir.Path("j.damaged")); string(kept) != text {
				t.Errorf("set aside is %q, %v", kept, err)
			}
			if err := j.Append(3); err != nil {
				t.Fatal(err)
			}
			if _, got, err := openJournal(t, dir); err != nil || !slices.Equal(got, []int{1, 2, 3}) {
				t.Errorf("then: %v, %v", got, err)
			}
		})
	}
}

// What is beyond the bound must not be taken for a line that was cut off.
func TestJournalThatIsTooLargeStaysAsItIs(t *testing.T) {
	dir := NewDir(t.TempDir())
	const lines = 65
	line := "1" + strings.Repeat(" ", maxJournalLine-2) + "\n"
	if err := os.WriteFile(dir.Path("j"), []byte("22\n"+strings.Repeat(line, lines)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openJournal(t, dir); err == nil || !strings.Contains(err.Error(), "is larger than") {
		t.Errorf("got %v", err)
	}
	if info, err := os.Stat(dir.Path("j")); err != nil || info.Size() != 3+lines*maxJournalLine {
		t.Errorf("it has %d bytes now, %v", info.Size(), err)
	}
}

// TestJournalThatCannotBeWrittenStaysGood closes the file beneath it.
func TestJournalThatCannotBeWrittenStaysGood(t *testing.T) {
	dir := NewDir(t.TempDir())
	j, _, err := openJournal(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(1); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(func() {}); err == nil {
		t.Error("what is no JSON was appended")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(2); err == nil {
		t.Error("no error of a closed file")
	}
	if _, got, err := openJournal(t, dir); err != nil || !slices.Equal(got, []int{1}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte("1\n2\n"))
	f.Add([]byte("1\n{\n2"))
	path := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := NewDir(path)
		if err := os.WriteFile(dir.Path("j"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, got, err := openJournal(t, dir)
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("%q: %v", data, err)
		}
		if err := j.Append(5); err != nil {
			t.Fatal(err)
		}
		if _, again, err := openJournal(t, dir); err != nil || !slices.Equal(again, append(got, 5)) {
			t.Errorf("%q: first %v, then %v, %v", data, got, again, err)
		}
	})
}
