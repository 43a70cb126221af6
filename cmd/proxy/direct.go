package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// direct is for commands that work on the objects of a bucket without a
// proxy.
type direct struct {
	*backend
	bucket, prefix string
	send           inplace.Sender
	progress       io.Writer

	// Whether the store and the KMS answer. Before watch, nothing is given up.
	storeWatch, kmsWatch inplace.Watch

	waiting     sync.Mutex
	waitingSaid time.Time
}

// openDirect opens the store and the keys, and keeps the keys usable,
// because a run can outlive a token.
func openDirect(ctx context.Context, cfg *config.Config, target crypt.Object, progress io.Writer) (*direct, error) {
	return openDirectAt(ctx, cfg, "", target, progress)
}

// openDirectAt is openDirect with the parameter unixSocket of openBackend.
func openDirectAt(
	ctx context.Context, cfg *config.Config, unixSocket string, target crypt.Object, progress io.Writer,
) (*direct, error) {
	b, err := openBackend(ctx, cfg, zap.NewNop(), unixSocket, nil)
	if err != nil {
		return nil, err
	}
	b.warnOfTenants(progress)
	for name, h := range b.held {
		b.keep(ctx, name, h.shared)
	}
	for _, k := range cfg.Keys { // templates are never unopened
		go b.openLater(ctx, k) // waits for a KMS that cannot be reached
	}
	d := &direct{backend: b, bucket: target.Bucket, prefix: target.Key, progress: progress}
	d.send = inplace.NewSender(b.origin, s3api.CheckAnswer, s3api.CheckRefusal)
	return d, nil
}

// watch returns a context that ends if the store or the KMS answers nothing
// for a while. It must be called before send is used.
func (d *direct) watch(ctx context.Context, limit time.Duration) (_ context.Context, stop func()) {
	d.storeWatch.What, d.storeWatch.Limit = "the store at "+d.cfg.Origin.Endpoint, limit
	d.storeWatch.Probe = d.probeStore
	d.kmsWatch.What, d.kmsWatch.Limit = "the KMS", limit
	d.send = d.storeWatch.Patient(
		inplace.NewSender(d.storeWatch.Transport(d.origin), s3api.CheckAnswer, s3api.CheckRefusal),
	)

	ctx, stopStore := d.storeWatch.Start(ctx)
	ctx, stopKMS := d.kmsWatch.Start(ctx)
	return ctx, func() { stopKMS(); stopStore() }
}

// awayInterval is how often a run reports that it waits for a KMS.
const awayInterval = time.Minute

// away reports that the run waits for a KMS. One that limits the rate of calls
// does answer.
func (d *direct) away(err error) {
	if kms.IsUnreachable(err) {
		d.kmsWatch.Failed(err)
	} else {
		d.kmsWatch.Answered()
	}

	d.waiting.Lock()
	defer d.waiting.Unlock()
	if now := time.Now(); now.Sub(d.waitingSaid) >= awayInterval {
		d.waitingSaid = now
		fmt.Fprintf(d.progress, "waiting for the KMS: %v\n", err)
	}
}

// probeStore asks the store about the bucket. Any answer of a store will do.
func (d *direct) probeStore(ctx context.Context) error {
	resp, err := d.origin.RoundTrip(d.aboutBucket(ctx, http.MethodHead, ""))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadGateway {
		return fmt.Errorf("it answered %d", resp.StatusCode)
	}
	return nil
}

// openBucket is openDirect for commands with --config and
// s3://BUCKET[/PREFIX].
func openBucket(c *cobra.Command, config, arg string) (*direct, error) {
	target, err := parseBucket(arg)
	if err != nil {
		return nil, err
	}
	cfg, err := readOffline(config)
	if err != nil {
		return nil, err
	}
	return openDirect(c.Context(), cfg, target, c.ErrOrStderr())
}

// aboutBucket returns a request about the bucket.
func (d *direct) aboutBucket(ctx context.Context, method, query string) *http.Request {
	r := &http.Request{
		Method: method, URL: &url.URL{Path: "/" + d.bucket, RawQuery: query}, Header: make(http.Header),
	}
	return r.WithContext(ctx)
}

// abilities finds out what the store can do, with objects below the prefix.
func (d *direct) abilities(ctx context.Context) (inplace.Abilities, error) {
	set, err := d.findCapabilities(ctx, d.bucket, d.prefix)
	if err != nil {
		return inplace.Abilities{}, fmt.Errorf("testing what the store can do: %w", err)
	}
	d.capabilities.Learn(set)
	return inplace.AbilitiesOf(set), nil
}

// reader returns a reader that uses the keys of the configuration.
func (d *direct) reader() *stored.Reader {
	return &stored.Reader{Send: d.send, Open: d.open, Cache: stored.NewCache(), OpenEnd: d.cfg.Origin.UniformParts}
}

func (d *direct) open(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
	return opened(d.keys.Open(ctx, obj, keyID, wrapped))
}

// openAnyKey also opens keys that no rule for the object names.
func (d *direct) openAnyKey(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
	return opened(d.keys.OpenAnyKey(ctx, obj, keyID, wrapped))
}

func opened(lease *keyring.Lease, err error) (stored.Lease, error) {
	if err != nil {
		return nil, err // not a nil *Lease in an interface
	}
	return lease, nil
}

// keyNames maps the ids of the configured keys to their names. The id of a
// key that is not open yet is not known.
func (d *direct) keyNames() map[string]string {
	names := make(map[string]string)
	for _, s := range d.keys.Status() {
		if s.ID != "" {
			names[s.ID] = s.Name
		}
	}
	return names
}
