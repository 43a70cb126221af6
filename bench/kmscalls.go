package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// reuseRule lets objects share data keys (dek_reuse).
const reuseRule = `{buckets: ["*"], key: bench, dek_reuse: {max_age: 1h, max_objects: 1000}}`

// kmsObjects is the number of objects that are written and read to count KMS
// calls.
const kmsObjects = 2000

// kmsCalls counts the KMS calls for the same objects, once with a data key
// for each object and once with dek_reuse. The load on the machine does not
// change the counts.
func kmsCalls(ctx context.Context, l *lab) error {
	fmt.Printf(
		"\n| %d objects of 4 KiB, dek_cache.ttl 5m | KMS calls to write them | "+
			"to read them, with nothing cached |\n|---|---|---|\n",
		kmsObjects,
	)
	for _, row := range []struct{ name, label, rule string }{
		{"kms-each", "a data key for each (default)", plainRule},
		{"kms-reuse", "`dek_reuse: {max_objects: 1000}`", reuseRule},
	} {
		t, address, err := l.startProxyWith(ctx, row.name, l.store, row.rule)
		if err != nil {
			return err
		}

		admin := newTarget(
			row.name+"-admin",
			"http://"+address,
			clientAccess,
			clientSecret,
			nil,
		) // the admin port does not check signatures
		written, err := l.countCalls(ctx, admin, func(n int) error {
			_, err := t.do(
				ctx,
				http.MethodPut,
				fmt.Sprintf("/%s/%s-%d", bucket, row.name, n),
				&endless{left: 4 << 10},
				4<<10,
			)
			return err
		})
		if err != nil {
			return err
		}

		if _, err := admin.do(ctx, http.MethodPost, "/admin/purge", nil, 0); err != nil {
			return err
		}

		read, err := l.countCalls(ctx, admin, func(n int) error {
			_, err := t.do(ctx, http.MethodGet, fmt.Sprintf("/%s/%s-%d", bucket, row.name, n), nil, 0)
			return err
		})
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %d | %d |\n", row.label, written, read)
	}

	return nil
}

// countCalls calls do with the number of each object, and returns how many
// KMS calls were made meanwhile.
func (l *lab) countCalls(ctx context.Context, admin *target, do func(n int) error) (int64, error) {
	before, err := calls(ctx, admin)
	if err != nil {
		return 0, err
	}

	const clients = 8
	r := inParallel(clients, func(client int) (int64, error) {
		for n := client; n < kmsObjects; n += clients {
			if err := do(n); err != nil {
				return 0, err
			}
		}
		return 0, nil
	})
	if r.err != nil {
		return 0, r.err
	}

	after, err := calls(ctx, admin)
	return after - before, err
}

// calls returns the number of KMS calls so far, without probes, from the
// proxy's metrics.
func calls(ctx context.Context, admin *target) (sum int64, err error) {
	resp, err := admin.send(ctx, http.MethodGet, "/metrics", nil, nil, 0)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()

	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "} ")
		if strings.HasPrefix(name, "cmekproxy_kms_duration_seconds_count{") && !strings.Contains(name, `"probe"`) {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}

	return sum, lines.Err()
}
