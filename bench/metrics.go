package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// startCounting returns what a later result of countMallocs is compared
// with. The difference does not have the allocations of counting.
func (t *target) startCounting(ctx context.Context) (int64, error) {
	first, err := t.countMallocs(ctx)
	if err != nil || first < 0 {
		return first, err
	}
	second, err := t.countMallocs(ctx)
	return second + (second - first), err
}

// countMallocs returns how many allocations the target has made so far, or
// -1 if it does not count them.
func (t *target) countMallocs(ctx context.Context) (int64, error) {
	if t.metrics == "" {
		return -1, nil
	}
	return sumMetrics(ctx, t.metrics, func(name string) bool { return name == "go_memstats_mallocs_total" })
}

// sumMetrics returns the sum of the metrics whose names, with their labels,
// are wanted.
func sumMetrics(ctx context.Context, url string, wanted func(name string) bool) (int64, error) {
	resp, err := adminDo(ctx, http.MethodGet, url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()

	var sum float64
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		end := strings.LastIndexByte(lines.Text(), ' ')
		if end < 0 || !wanted(lines.Text()[:end]) {
			continue
		}
		value, err := strconv.ParseFloat(lines.Text()[end+1:], 64)
		if err != nil {
			return 0, err
		}
		sum += value
	}
	return int64(sum), lines.Err()
}

// adminDo does a request to the admin port.
func adminDo(ctx context.Context, method, url string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		defer resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return resp, nil
}
