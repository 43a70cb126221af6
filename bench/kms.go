package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kmsLoad is the load under which KMS calls are measured.
type kmsLoad struct {
	rounds  int
	length  time.Duration // with, and again without KMS calls
	objects int           // objects for which calls are counted
}

var (
	fullKMSLoad  = kmsLoad{rounds: 9, length: time.Second, objects: 2000}
	shortKMSLoad = kmsLoad{rounds: 2, length: 500 * time.Millisecond, objects: 200}
)

// measureKMS measures what a call to aws-kms costs the proxy, and counts how
// many calls objects need. The KMS is a process of its own.
func measureKMS(ctx context.Context, o options, w io.Writer) error {
	l, err := newOrigin(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	t, admin, err := l.startWithKMS(ctx)
	if err != nil {
		return err
	}

	printRow(w, "KMS calls", "", "goal", "")
	printRule(w, 4)
	with, without, err := o.kms.costs(ctx, t, o.clients)
	least, middle := best(with)-best(without), median(with)-median(without)
	printRow(w, "CPU of a call (PUT 4 KiB without `dek_reuse`, less one with it)",
		number(least)+" µs; "+number(middle)+" µs in the median", "≤ "+number(maxKMSCall)+" µs",
		verdict(least, middle, maxKMSCall))

	return errors.Join(err,
		o.kms.count(ctx, t, admin, "", "a data key for each object", w),
		o.kms.count(ctx, t, admin, "-reuse", "`dek_reuse: {max_objects: 1000}`", w))
}

// startWithKMS starts a proxy whose key is in a KMS.
func (l *lab) startWithKMS(ctx context.Context) (t *target, admin string, err error) {
	addr := l.address()
	if _, err := l.launch(ctx, "kms", addr, l.self, kmsCommand, addr); err != nil {
		return nil, "", err
	}
	arn, err := os.ReadFile(filepath.Join(l.dir, "kms.out"))
	if err != nil {
		return nil, "", err
	}

	keys := fmt.Sprintf(`[{name: bench, provider: aws-kms, key_id: "%s", endpoint: "http://%s"}]`,
		strings.TrimSpace(string(arn)), addr)
	rules := `[{buckets: ["*-reuse"], key: bench, dek_reuse: {max_age: 1h, max_objects: 1000}}, ` +
		`{buckets: ["*"], key: bench}]`
	origin := fmt.Sprintf(`endpoint: "http://%s"`, l.origin)
	e, admin, err := l.startProxy(ctx, oursName, origin, keys, rules, "")

	return &target{
		name: oursName, bucket: "ours", access: clientAccess, secret: clientSecret,
		plain: e, prepared: make(map[string]bool),
	}, "http://" + admin, err
}

// costs returns what a PUT costs in each round, in microseconds of CPU: with a
// call to the KMS, and without.
func (k kmsLoad) costs(ctx context.Context, t *target, clients int) (with, without []float64, err error) {
	each := cell{name: "each", method: http.MethodPut, size: 4 << 10}
	reuse := each
	reuse.reuse = true

	for range k.rounds {
		fmt.Fprintln(os.Stderr, "bench: KMS calls")
		called, err := each.measure(ctx, t, clients, k.length)
		if err != nil {
			return with, without, err
		}
		reused, err := reuse.measure(ctx, t, clients, k.length)
		if err != nil {
			return with, without, err
		}
		with, without = append(with, called.perRequest()), append(without, reused.perRequest())
	}
	return with, without, nil
}

// count prints how many KMS calls it takes to write some objects, and to
// read them with nothing in the cache.
func (k kmsLoad) count(ctx context.Context, t *target, admin, suffix, label string, w io.Writer) error {
	var paths []string
	for n := range k.objects {
		paths = append(paths, fmt.Sprintf("/count%s/%d", suffix, n))
	}

	before, err := kmsCalls(ctx, admin)
	if err != nil {
		return err
	}
	if err := t.store(ctx, paths, 4<<10); err != nil {
		return err
	}
	written, err := kmsCalls(ctx, admin)
	if err != nil {
		return err
	}

	resp, err := adminDo(ctx, http.MethodPost, admin+"/admin/purge")
	if err != nil {
		return err
	}
	if err := errors.Join(resp.Body.Close(), t.readAll(ctx, paths)); err != nil {
		return err
	}
	read, err := kmsCalls(ctx, admin)
	if err != nil {
		return err
	}

	printRow(w, fmt.Sprintf("Calls to write, and to read uncached, %d objects: %s", k.objects, label),
		fmt.Sprintf("%d and %d", written-before, read-written), "", "")
	return nil
}

// kmsCalls returns the number of KMS calls so far, without probes.
func kmsCalls(ctx context.Context, admin string) (int64, error) {
	return sumMetrics(ctx, admin+"/metrics", func(name string) bool {
		return strings.HasPrefix(name, "cmekproxy_kms_duration_seconds_count{") && !strings.Contains(name, `"probe"`)
	})
}

// readAll reads the object at each path.
func (t *target) readAll(ctx context.Context, paths []string) error {
	return t.forAll(ctx, paths, func(conn *connection, path string) error {
		_, err := conn.exchange(ctx, t, t.plain, message{method: http.MethodGet, path: path}, nil)
		return err
	})
}
