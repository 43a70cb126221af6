package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is the unit of CPU times in /proc: USER_HZ, which is 100 on
// every Linux system.
const clockTick = 10 * time.Millisecond

// cpu returns the CPU time of the target's processes so far, user and
// system.
func (t *target) cpu() time.Duration {
	if t.pids == nil {
		return 0
	}

	var total time.Duration
	for _, pid := range t.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ") // the name may contain spaces
		fields := strings.Fields(rest)
		for _, field := range fields[11:13] { // utime and stime; see proc(5)
			n, _ := strconv.ParseInt(field, 10, 64)
			total += time.Duration(n) * clockTick
		}
	}

	return total
}

// resetPeakRSS restarts the measurement of peakRSS; see clear_refs in
// proc(5).
func (t *target) resetPeakRSS() {
	if t.pids == nil {
		return
	}
	for _, pid := range t.pids() {
		_ = os.WriteFile(
			fmt.Sprintf("/proc/%d/clear_refs", pid),
			[]byte("5"),
			0,
		) // if this fails, the peak covers the whole run
	}
}

// peakRSS returns the peak resident memory of the target's processes, in
// bytes: the sum of their peaks.
func (t *target) peakRSS() int64 {
	if t.pids == nil {
		return 0
	}

	var total int64
	for _, pid := range t.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
				total += n << 10
			}
		}
	}

	return total
}

// children returns pid and the processes that it has started.
func children(pid int) []int {
	out := []int{pid}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return out
	}
	for field := range strings.FieldsSeq(string(data)) {
		if n, err := strconv.Atoi(field); err == nil {
			out = append(out, n)
		}
	}
	return out
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

// room returns how many bytes may be written to a directory. The limit is
// the space on the file system, and for a file system in memory also the
// available memory.
func room(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, err
	}

	free := int64(fs.Bavail) * fs.Bsize
	const tmpfs = 0x01021994
	if fs.Type != tmpfs {
		return free, nil
	}

	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}

	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			return min(free, n<<10/2), err // the other half is for everything else
		}
	}

	return free, nil
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
