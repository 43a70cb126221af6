package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// checkTimeout bounds each single check.
const checkTimeout = 15 * time.Second

// check tests everything that serve depends on, and prints a line for each thing.
func check(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	path := flags.String("config", "", "path of the configuration `FILE`")
	bucket := flags.String("bucket", "", "`BUCKET` in which the store may be tested with small objects, which are removed again")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	cfg, err := loadConfig(*path)
	if err != nil {
		return err
	}
	c := &checker{out: stdout}
	c.line(nil, "configuration %s", *path)
	for _, key := range cfg.Keys {
		c.run(ctx, "key "+key.Name+" ("+string(key.Provider)+")", func(ctx context.Context) (string, error) { return checkKey(ctx, key) })
	}
	c.line(checkAudit(cfg.Audit), "audit log")
	c.certificate(cfg.TLS)
	for _, name := range shortSecrets(cfg.Clients) {
		fmt.Fprintf(stdout, "warn  client %s: secret_key has fewer than %d characters; choose a longer one\n", name, goodSecret)
	}
	if a, err := build(ctx, cfg, zap.NewNop(), ""); err != nil {
		c.line(err, "wiring")
	} else {
		for _, pair := range a.keys.Twins() {
			fmt.Fprintf(stdout, "note  keys %s and %s are one KMS key: what names it is opened by %s\n",
				pair[0], pair[1], pair[0])
		}
		for _, name := range a.keys.Unread() {
			fmt.Fprintf(stdout, "note  key %s: no rule names it (key, allowed_keys, read_keys), so nothing under it can be read\n", name)
		}
		a.close()
	}
	store, err := buildOrigin(ctx, cfg, "")
	if err != nil {
		return err
	}
	probe := &storeProbe{store: store, bucket: *bucket, name: ".cmekproxy-check-" + rand.Text()}
	c.run(ctx, "store "+cfg.Origin.Endpoint+": credentials", probe.list)
	if *bucket == "" {
		fmt.Fprintln(stdout, "skip  what the store can do: give --bucket to find out")
	} else {
		c.run(ctx, "store: put, 2 KB of metadata", probe.put)
		c.run(ctx, "store: ranges", probe.ranges)
		c.run(ctx, "store: If-None-Match: * on PUT", probe.ifNoneMatch)
		c.run(ctx, "store: multipart uploads", func(ctx context.Context) (string, error) {
			return probe.multipart(ctx, cfg.Origin)
		})
		c.run(ctx, "store: a body cut short is not kept", probe.cut)
		c.run(ctx, "store: keys", func(ctx context.Context) (string, error) { return probe.keys(ctx, cfg.Origin.Keys) })
		c.run(ctx, "store: delete", probe.remove)
	}
	if c.failures > 0 {
		return fmt.Errorf("%d of %d checks failed", c.failures, c.total)
	}
	return nil
}

// checker prints results and counts them.
type checker struct {
	out             io.Writer
	total, failures int
}

func (c *checker) run(ctx context.Context, what string, test func(context.Context) (string, error)) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	detail, err := test(ctx)
	if detail != "" {
		what += ": " + detail
	}
	c.line(err, "%s", what)
}

func (c *checker) line(err error, format string, args ...any) {
	c.total++
	what := fmt.Sprintf(format, args...)
	if err != nil {
		c.failures++
		fmt.Fprintf(c.out, "FAIL  %s: %v\n", what, err)
		return
	}
	fmt.Fprintf(c.out, "ok    %s\n", what)
}

// certificate looks at the certificate of the S3 port.
func (c *checker) certificate(cfg config.TLS) {
	server, err := buildTLS(cfg, zap.NewNop())
	if server == nil && err == nil {
		return
	}
	what := "certificate " + cfg.CertFile
	if err == nil {
		what += ", valid until " + server.Certificate().NotAfter.Format(time.RFC3339)
		err = server.Valid(time.Now())
	}
	c.line(err, "%s", what)
}

// checkKey makes a round trip with a key.
func checkKey(ctx context.Context, key config.Key) (string, error) {
	wrapper, err := buildWrapper(ctx, key, nil)
	if err != nil {
		return "", err
	}
	wrapped, _, err := kms.RoundTrip(ctx, wrapper)
	if err != nil {
		return wrapper.KeyID(), err
	}
	if azure, ok := wrapper.(*kms.Azure); ok {
		detail, err := checkBindings(ctx, azure, kms.VersionOf(azure.KeyID(), wrapped))
		return azure.KeyID() + detail, err
	}
	detail, err := checkAlias(ctx, key, wrapper.KeyID())
	if detail != "" {
		detail = "; " + detail
	}
	return wrapper.KeyID() + detail, err
}

// checkBindings has an Azure key unwrap its bindings, and says what they are
// worth. newest is the present version of the key.
func checkBindings(ctx context.Context, key *kms.Azure, newest string) (string, error) {
	versions := key.Bound()
	switch {
	case !key.IsRSA():
		return "", nil
	case len(versions) == 0:
		return "; whoever has the public key can make objects that are taken for genuine: " +
			"add bindings (proxy keys bind), or use A256KW on a Managed HSM", nil
	}
	if err := key.TryBindings(ctx); err != nil {
		return "", err
	}

	var detail strings.Builder
	fmt.Fprintf(&detail, "; %d bindings", len(versions))
	for i, version := range versions {
		if version != newest {
			fmt.Fprintf(&detail, "; binding %d is under version %s and not the newest: "+
				"before you disable that version, wrap the binding again (proxy keys bind --again %d)", i+1, version, i+1)
		}
	}
	return detail.String(), nil
}

// storeProbe finds out what the store can do, with one small object.
type storeProbe struct {
	store  http.RoundTripper
	bucket string
	name   string
}

var probeText = []byte("written by proxy check, and to be removed by it")

func (p *storeProbe) do(ctx context.Context, method, path string, header http.Header, body io.Reader, length int64) (reply, error) {
	path, query, _ := strings.Cut(path, "?")
	r, err := http.NewRequestWithContext(ctx, method, (&url.URL{Scheme: "http", Host: "origin", Path: path, RawQuery: query}).String(), body)
	if err != nil {
		return reply{}, err
	}
	if header != nil {
		r.Header = header
	}
	r.ContentLength = length
	resp, err := p.store.RoundTrip(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 300 {
		if err := s3api.CheckAnswer(r, resp); err != nil {
			return reply{}, err
		}
	}
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(io.LimitReader(resp.Body, 64<<10)); err != nil {
		return reply{}, err
	}
	return reply{resp.StatusCode, resp.Header, answer.Bytes()}, nil
}

// reply is an answer of the store.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// expect sends a request for the probe's object and compares the status.
func (p *storeProbe) expect(ctx context.Context, want int, method string, header http.Header, body []byte) (reply, error) {
	got, err := p.do(ctx, method, "/"+p.bucket+"/"+p.name, header, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return reply{}, err
	}
	if got.status != want {
		return reply{}, fmt.Errorf("%s answered %d, not %d: %.300s", method, got.status, want, got.body)
	}
	return got, nil
}

func (p *storeProbe) list(ctx context.Context) (string, error) {
	path := "/"
	if p.bucket != "" {
		path = "/" + p.bucket
	}
	got, err := p.do(ctx, http.MethodGet, path, nil, nil, 0)
	if err != nil {
		return "", err
	}
	if got.status != http.StatusOK {
		return "", fmt.Errorf("listing %s answered %d: %.300s", path, got.status, got.body)
	}
	return "", nil
}

func (p *storeProbe) put(ctx context.Context) (string, error) {
	value := hex.EncodeToString(make([]byte, 1000))
	stored, err := p.expect(ctx, http.StatusOK, http.MethodPut, http.Header{"X-Amz-Meta-Cmek-Check": {value}}, probeText)
	if err != nil {
		return "", err
	}
	head, err := p.expect(ctx, http.StatusOK, http.MethodHead, nil, nil)
	if err != nil {
		return "", err
	}
	if head.header.Get("X-Amz-Meta-Cmek-Check") != value {
		return "", errors.New("metadata comes back altered")
	}
	return "ETag " + stored.header.Get("Etag"), nil
}

func (p *storeProbe) ranges(ctx context.Context) (string, error) {
	for header, want := range map[string][]byte{"bytes=3-9": probeText[3:10], "bytes=-5": probeText[len(probeText)-5:]} {
		got, err := p.expect(ctx, http.StatusPartialContent, http.MethodGet, http.Header{"Range": {header}}, nil)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(got.body, want) {
			return "", fmt.Errorf("range %s gave other bytes", header)
		}
	}
	return "", nil
}

func (p *storeProbe) ifNoneMatch(ctx context.Context) (string, error) {
	got, err := p.do(ctx, http.MethodPut, "/"+p.bucket+"/"+p.name, http.Header{"If-None-Match": {"*"}}, bytes.NewReader(probeText), int64(len(probeText)))
	switch {
	case err != nil:
		return "", err
	case got.status == http.StatusPreconditionFailed:
		return "refused as it should be", nil
	case got.status == http.StatusOK:
		return "IGNORED by this store: conditional writes do not protect anything here", nil
	default:
		return fmt.Sprintf("not supported (%d)", got.status), nil
	}
}

// cut makes sure of what the proxy's writes stand on: a body that ends before its Content-Length is not kept. The body
// lacks its last bytes only, as when the proxy finds a bad checksum at the very end.
func (p *storeProbe) cut(ctx context.Context) (string, error) {
	const size, missing = 1 << 20, 16
	path := "/" + p.bucket + "/" + p.name + "-cut"
	short := io.MultiReader(bytes.NewReader(make([]byte, size-missing)), failingReader{})
	if _, err := p.do(ctx, http.MethodPut, path, nil, short, size); err == nil {
		return "", errors.New("the store answered before it had the whole body")
	}
	time.Sleep(time.Second) // a store that keeps it does so after the connection has ended
	got, err := p.do(ctx, http.MethodHead, path, nil, nil, 0)
	if err != nil {
		return "", err
	}
	if got.status != http.StatusNotFound {
		_, err := p.do(ctx, http.MethodDelete, path, nil, nil, 0)
		return "", errors.Join(fmt.Errorf("HEAD answered %d, not 404: a failed upload leaves an object behind; is origin.checksum_trailer off?", got.status), err)
	}
	return "", nil
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("cut on purpose") }

func (p *storeProbe) remove(ctx context.Context) (string, error) {
	_, err := p.expect(ctx, http.StatusNoContent, http.MethodDelete, nil, nil)
	return "", err
}
