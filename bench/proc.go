package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuOf returns the CPU time of processes so far, user and system, by their
// process clocks. These count nanoseconds, and threads that have ended.
func cpuOf(pids []int) time.Duration {
	var total time.Duration
	for _, pid := range pids {
		const scheduler = 2 // CPUCLOCK_SCHED; see clock_getcpuclockid(3)
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid)<<3|scheduler, &ts); err == nil {
			total += time.Duration(ts.Nano())
		}
	}
	return total
}

// resetPeakRSS restarts the measurement of peakRSS; see clear_refs in
// proc(5). If it fails, the peak covers the whole life of a process.
func resetPeakRSS(pids []int) {
	for _, pid := range pids {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}

// rss returns the resident memory of processes in bytes: the sum.
func rss(pids []int) int64 { return memoryOf(pids, "VmRSS:") }

// peakRSS returns the sum of the peaks of the resident memory of processes.
func peakRSS(pids []int) int64 { return memoryOf(pids, "VmHWM:") }

func memoryOf(pids []int, field string) (total int64) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(data, []byte("\n"+field))
		if fields := bytes.Fields(rest); len(fields) > 0 {
			n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
			total += n << 10
		}
	}
	return total
}

// family returns pid and all processes below it.
func family(pid int) []int {
	all := []int{pid}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // fails for a bad pattern only
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(data)) {
			if n, err := strconv.Atoi(field); err == nil {
				all = append(all, family(n)...)
			}
		}
	}
	return all
}

// loadAverage shows whether the machine was busy otherwise: the averages
// over one, five and fifteen minutes.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	defer f.Close()
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		if name, value, ok := strings.Cut(scanner.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}
