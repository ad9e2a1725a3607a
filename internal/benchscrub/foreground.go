//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// foreground is somebody who uses the pool.
type foreground struct {
	Name    string   `json:"name"`
	What    string   `json:"what"`
	Streams []stream `json:"streams"`
	// Length is how many times Options.Seconds a measurement takes.
	Length int `json:"length"`
}

// stream is a series of requests that begin on time, whatever became of those
// before.
type stream struct {
	Name   string     `json:"name"`
	Access accessKind `json:"access"`
	Bytes  int        `json:"bytes"` // of each request
	// PerSecond is how often it is time for requests: for one, or for Burst of
	// them one after the other.
	PerSecond float64 `json:"per_second"`
	Burst     int     `json:"burst,omitempty"`
}

type accessKind string

const (
	// randomReads do not wait for each other, unless they are a burst.
	randomReads accessKind = "random reads"
	// sequentialReads and sequentialWrites are one at a time: one that is late
	// makes the next one late, which counts from when it should have begun.
	sequentialReads  accessKind = "sequential reads"
	sequentialWrites accessKind = "sequential writes"
)

func foregrounds() []foreground {
	const mb = 1e6 / (1 << 20) // requests of 1 MiB for one MB
	random := func(perSecond float64) stream {
		return stream{Name: "random", Access: randomReads, Bytes: 4 << 10, PerSecond: perSecond}
	}
	film := func(perSecond float64) stream {
		return stream{Name: "film", Access: sequentialReads, Bytes: 1 << 20, PerSecond: perSecond}
	}
	write := func(perSecond float64) stream {
		return stream{Name: "write", Access: sequentialWrites, Bytes: 1 << 20, PerSecond: perSecond}
	}
	burst := stream{Name: "bursts", Access: randomReads, Bytes: 4 << 10, PerSecond: 1. / 4, Burst: 25}
	return []foreground{
		{"random", "30 random reads of 4 KiB a second", []stream{random(30)}, 1},
		{"film", "a film of 5 MB/s, read by the MiB", []stream{film(5 * mb)}, 2},
		{"bursts", "25 random reads of 4 KiB one after the other, every 4 s", []stream{burst}, 2},
		{"write", "20 MB/s written by the MiB", []stream{write(20 * mb)}, 1},
		{"mixed", "15 random reads a second, a film of 2.5 MB/s, and 10 MB/s written", []stream{random(15), film(2.5 * mb), write(10 * mb)}, 1},
	}
}

// lateness is how long after its end a foreground still begins requests whose
// time had come before.
const lateness = 5 * time.Second

// request is what became of a request. Its times count from the start of the
// foreground.
type request struct {
	Stream   int           `json:"stream"`
	Bytes    int           `json:"bytes"` // 0 where it never began
	Intended time.Duration `json:"intended"`
	Begun    time.Duration `json:"begun"`
	Done     time.Duration `json:"done"`
}

// foregroundConfig is what the child is told.
type foregroundConfig struct {
	Foreground foreground
	Length     time.Duration
	ReadFile   string
	WriteFile  string
	Seed       uint64
}

// foregroundReport is its answer after it has run. Before that it answers that
// it is ready.
type foregroundReport struct {
	Ready    bool      `json:"ready,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Requests []request `json:"requests,omitempty"`
}

// beForeground is the child's main: it opens the files, which it leaves open
// until it exits, waits for a line and runs.
func beForeground(config string) error {
	var c foregroundConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	var workers []*worker
	for i, s := range c.Foreground.Streams {
		w, err := newWorker(i, s, c)
		if err != nil {
			return err
		}
		workers = append(workers, w)
	}
	answers := json.NewEncoder(os.Stdout)
	if err := answers.Encode(foregroundReport{Ready: true}); err != nil {
		return err
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("wait for the start: %w", err)
	}
	report := foregroundReport{Started: time.Now()}
	var wait sync.WaitGroup
	for _, w := range workers {
		w.start = report.Started
		wait.Go(w.run)
	}
	wait.Wait()
	for _, w := range workers {
		if w.err != nil {
			return w.err
		}
		report.Requests = append(report.Requests, w.requests...)
	}
	return answers.Encode(report)
}

// worker does the requests of one stream.
type worker struct {
	stream
	index  int
	file   *os.File
	size   int64 // of the file that is read
	length time.Duration
	rng    *rand.Rand
	start  time.Time
	next   int64 // where the next sequential request is

	mu       sync.Mutex
	requests []request
	err      error
}

func newWorker(index int, s stream, c foregroundConfig) (*worker, error) {
	w := &worker{stream: s, index: index, length: c.Length, rng: rand.New(rand.NewPCG(c.Seed, uint64(index)))}
	path, flags := c.ReadFile, os.O_RDONLY
	if s.Access == sequentialWrites {
		path, flags = c.WriteFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC
	}
	var err error
	if w.file, err = os.OpenFile(path, flags|unix.O_DIRECT, 0o600); err != nil {
		return nil, err
	}
	info, err := w.file.Stat()
	if err != nil {
		w.file.Close()
		return nil, err
	}
	w.size = info.Size()
	if s.Access == sequentialReads {
		w.next = w.randomOffset()
	}
	return w, nil
}

func (w *worker) randomOffset() int64 { return w.rng.Int64N(w.size/int64(w.Bytes)) * int64(w.Bytes) }

// run does the requests until the foreground has run for its length.
func (w *worker) run() {
	// The kernel chooses the copy that it reads by the number of the thread
	// (find_live_mirror in fs/btrfs/volumes.c): a film stays on one disk.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	interval := time.Duration(float64(time.Second) / w.PerSecond)
	buffer := alignedBuffer(w.Bytes)
	for i := time.Duration(0); i*interval < w.length; i++ {
		intended := i * interval
		time.Sleep(time.Until(w.start.Add(intended)))
		switch {
		case time.Since(w.start) > w.length+lateness:
			// It never begins. That it took until now is the least to say.
			now := time.Since(w.start)
			w.note(request{Stream: w.index, Intended: intended, Begun: now, Done: now}, nil)
		case w.Access == randomReads && w.Burst == 0:
			offset := w.randomOffset()
			inFlight.Go(func() { w.do(alignedBuffer(w.Bytes), offset, intended) })
		case w.Access == randomReads:
			for range w.Burst {
				w.do(buffer, w.randomOffset(), intended)
				intended = time.Since(w.start)
			}
		default:
			w.do(buffer, w.next, intended)
			w.next += int64(w.Bytes)
			if w.Access == sequentialReads && w.next+int64(w.Bytes) > w.size {
				w.next = 0
			}
		}
	}
}

func (w *worker) do(buffer []byte, offset int64, intended time.Duration) {
	r := request{Stream: w.index, Bytes: len(buffer), Intended: intended, Begun: time.Since(w.start)}
	var err error
	if w.Access == sequentialWrites {
		_, err = w.file.WriteAt(buffer, offset)
	} else {
		_, err = w.file.ReadAt(buffer, offset)
	}
	r.Done = time.Since(w.start)
	w.note(r, err)
}

func (w *worker) note(r request, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, r)
	if err != nil && w.err == nil {
		w.err = err
	}
}

// alignedBuffer returns a buffer for O_DIRECT.
func alignedBuffer(size int) []byte {
	const alignment = 4096
	b := make([]byte, size+alignment)
	skip := alignment - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%alignment)
	return b[skip : skip+size]
}

// runningForeground is a foreground that is ready, or runs.
type runningForeground struct {
	*child
	length time.Duration
}

// startForeground starts a foreground that waits for begin.
func startForeground(c foregroundConfig) (*runningForeground, error) {
	process, err := startChild(roleForeground, niceDisk, c, io.Discard)
	if err != nil {
		return nil, err
	}
	var ready foregroundReport
	if err := process.answer(&ready); err != nil {
		process.kill()
		return nil, err
	}
	return &runningForeground{process, c.Length}, nil
}

// run lets it run and returns what it found.
func (f *runningForeground) run(ctx context.Context) (*foregroundReport, error) {
	if _, err := io.WriteString(f.stdin, "\n"); err != nil {
		f.kill()
		return nil, fmt.Errorf("%s: %w", f.role, f.failure(err))
	}
	ended := make(chan error, 1)
	report := new(foregroundReport)
	go func() { ended <- f.answer(report) }()
	select {
	case err := <-ended:
		if err != nil {
			f.kill()
			return nil, err
		}
		return report, f.stop()
	case <-ctx.Done():
		f.kill()
		<-ended
		return nil, ctx.Err()
	case <-time.After(f.length + lateness + childPatience):
		f.kill()
		<-ended
		return nil, fmt.Errorf("%s does not end", f.role)
	}
}
