// Package selfstat exports what this process uses, under the names that every
// Prometheus client has for it.
package selfstat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Collector reads the figures of this process at each scrape. It takes the
// place of client_golang's, which costs as much as the reading of two pools:
// that one reads the start time anew each time, from the list of all
// interrupts of the machine, and also the network traffic of the machine.
type Collector struct {
	cpu, openFDs, maxFDs, virtual, resident, start *prometheus.Desc

	startSeconds float64 // since 1970
	pageSize     float64
}

// NewCollector returns a Collector. It fails where /proc is not mounted.
func NewCollector() (*Collector, error) {
	start, err := startTime()
	if err != nil {
		return nil, fmt.Errorf("read the start time of the process: %w", err)
	}
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return &Collector{
		cpu:          desc("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
		openFDs:      desc("process_open_fds", "Number of open file descriptors."),
		maxFDs:       desc("process_max_fds", "Maximum number of open file descriptors."),
		virtual:      desc("process_virtual_memory_bytes", "Virtual memory size in bytes."),
		resident:     desc("process_resident_memory_bytes", "Resident memory size in bytes."),
		start:        desc("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
		startSeconds: start,
		pageSize:     float64(os.Getpagesize()),
	}, nil
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.cpu, c.openFDs, c.maxFDs, c.virtual, c.resident, c.start} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }

	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) == nil {
		ch <- prometheus.MustNewConstMetric(c.cpu, prometheus.CounterValue, float64(t.Nano())/1e9)
	}
	if n, err := countFDs(); err == nil {
		gauge(c.openFDs, float64(n))
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		gauge(c.maxFDs, float64(limit.Cur))
	}
	if virtual, resident, err := memoryPages(); err == nil {
		gauge(c.virtual, float64(virtual)*c.pageSize)
		gauge(c.resident, float64(resident)*c.pageSize)
	}
	gauge(c.start, c.startSeconds)
}

// startTime reads when the process started, in seconds since 1970: field 22 of
// /proc/self/stat, in hundredths of a second since the boot, whose time is in
// /proc/stat (proc_pid_stat(5), proc_stat(5)).
func startTime() (float64, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, err
	}
	// The name of the program stands in parentheses and may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const first, startField, ticks = 3, 22, 100
	if len(fields) <= startField-first {
		return 0, fmt.Errorf("/proc/self/stat is too short: %q", stat)
	}
	started, err := strconv.ParseFloat(string(fields[startField-first]), 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/self/stat: %w", err)
	}
	stat, err = os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(stat) {
		if value, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
			boot, err := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/stat: %w", err)
			}
			return boot + started/ticks, nil
		}
	}
	return 0, errors.New("/proc/stat has no btime")
}

// countFDs counts the open file descriptors, without the one that it opens.
func countFDs() (int, error) {
	fd, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	for total := -1; ; {
		n, err := unix.ReadDirent(fd, buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return total, nil
		default:
			_, count, _ := unix.ParseDirent(buf[:n], -1, nil)
			total += count
		}
	}
}

// memoryPages reads the virtual and the resident size (proc_pid_statm(5)).
func memoryPages() (virtual, resident uint64, err error) {
	fd, err := unix.Open("/proc/self/statm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	var buf [256]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(buf[:n])
	if len(fields) < 2 {
		return 0, 0, fmt.Errorf("/proc/self/statm is too short: %q", buf[:n])
	}
	if virtual, err = strconv.ParseUint(string(fields[0]), 10, 64); err != nil {
		return 0, 0, err
	}
	resident, err = strconv.ParseUint(string(fields[1]), 10, 64)
	return virtual, resident, err
}
