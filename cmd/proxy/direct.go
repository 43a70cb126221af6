package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// direct is what a command needs that works on the objects of a bucket without a proxy.
type direct struct {
	*app
	bucket, prefix string
	send           func(*http.Request) (*http.Response, error)
	progress       io.Writer
}

func openDirect(ctx context.Context, cfg *config.Config, target crypt.Object, progress io.Writer) (*direct, error) {
	a, err := build(ctx, cfg, zap.NewNop(), "")
	if err != nil {
		return nil, err
	}
	store, err := buildOrigin(ctx, cfg, "")
	if err != nil {
		a.close()
		return nil, err
	}
	for _, k := range a.opened {
		a.tend(ctx, k) // a run can take longer than a token lives
	}
	for _, k := range cfg.Keys {
		go a.openLater(ctx, k) // a key whose KMS is away is waited for
	}
	d := &direct{app: a, bucket: target.Bucket, prefix: target.Key, progress: progress}
	d.send = patient(func(r *http.Request) (*http.Response, error) { return sendDirect(store, r) }) //nolint:bodyclose // it is the caller's
	return d, nil
}

// reader reads through the keys of the configuration.
func (d *direct) reader() *stored.Reader {
	return &stored.Reader{Send: d.send, Open: d.open, Cache: stored.NewCache(), OpenEnd: d.cfg.Origin.UniformParts}
}

func (d *direct) open(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
	return opened(d.keys.Open(ctx, obj, keyID, wrapped))
}

// openAnyKey opens also with a key that no rule for the object names.
func (d *direct) openAnyKey(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
	return opened(d.keys.OpenAnyKey(ctx, obj, keyID, wrapped))
}

func opened(lease *keyring.Lease, err error) (stored.Lease, error) {
	if err != nil {
		return nil, err // and not a nil *Lease in an interface
	}
	return lease, nil
}

// keyNames are the names of the configured keys, by id. Of one that could not be opened the id is not known.
func (d *direct) keyNames() map[string]string {
	names := make(map[string]string)
	for _, s := range d.keys.Status() {
		if s.ID != "" {
			names[s.ID] = s.Name
		}
	}
	return names
}

// parseBucket is parseTarget for s3://bucket and s3://bucket/prefix.
func parseBucket(flags *flag.FlagSet, args []string, stdout io.Writer) (crypt.Object, error) {
	args = append([]string(nil), args...)
	for i, arg := range args {
		if rest, ok := strings.CutPrefix(arg, "s3://"); ok && strings.Trim(rest, "/") != "" && !strings.Contains(strings.TrimSuffix(rest, "/"), "/") {
			args[i] = "s3://" + strings.TrimSuffix(rest, "/") + "/" + wholeBucket
		}
	}
	target, err := parseTarget(flags, args, stdout)
	target.Key = strings.TrimSuffix(target.Key, wholeBucket)
	return target, err
}

// wholeBucket stands for the empty prefix, which parseTarget does not take. No key holds a NUL.
const wholeBucket = "\x00"

// How often, and after which first pause, a request without a body is sent again to a store that does not answer it.
const (
	storeTries = 5
	storePause = 200 * time.Millisecond
)

// patient sends requests that read again, as among millions there is always one that a store has no time for.
func patient(send func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		for i := 0; ; i++ {
			resp, err := send(r)
			if err == nil || i+1 == storeTries || r.Context().Err() != nil ||
				r.Method != http.MethodGet && r.Method != http.MethodHead {
				return resp, err
			}
			if answer := (*storeError)(nil); errors.As(err, &answer) && answer.status < 500 && answer.status != http.StatusTooManyRequests {
				return resp, err
			}
			select {
			case <-r.Context().Done():
				return nil, err
			case <-time.After(storePause << i):
			}
		}
	}
}

// counter shows how many objects are done, of nobody knows how many.
func counter(w io.Writer, what string) *progressbar.ProgressBar {
	return progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
		progressbar.OptionShowIts(), progressbar.OptionSetItsString("objects"), progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionSetVisibility(isTerminal(w)), progressbar.OptionClearOnFinish())
}

// checkParallel refuses what no number of parallel requests can be.
func checkParallel(n int) error {
	if n < 1 || n > 1000 {
		return usageError{fmt.Errorf("--parallel is %d, and must be from 1 to 1000", n)}
	}
	return nil
}
