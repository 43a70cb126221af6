package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// TestRevocation measures what the product promises: how long after a key is
// revoked the last byte of plaintext reaches a client. Readers, slow
// downloads and uploads run meanwhile. The time must not exceed the window
// that /metrics states. Times are shortened unless E2E_PROOF=full.
func TestRevocation(t *testing.T) {
	if full() {
		measure(t, fullSettings)
	} else {
		measure(t, []setting{{2 * time.Second, 0}})
	}
}

// TestRevocationWithProbe is TestRevocation with a probe of the key. It runs
// at the same time.
func TestRevocationWithProbe(t *testing.T) {
	if full() {
		t.Skip("TestRevocation measures all settings")
	}
	measure(t, []setting{{5 * time.Second, time.Second}})
}

func measure(t *testing.T, settings []setting) {
	t.Helper()
	if !selected("go-sdk") {
		t.Skip("not selected")
	}
	t.Parallel() // with TestKMSErrors, which also spends its time waiting
	stage := newStage(t)
	stage.prepareParts()
	t.Cleanup(func() { t.Log("\n" + stage.table()) })
	for _, s := range settings {
		stage.configure(s)
		for _, a := range stage.acts(s) {
			t.Run(fmt.Sprintf("ttl=%v probe=%v %s", s.ttl, s.probe, a.name), func(t *testing.T) { stage.play(t, s, a) })
		}
	}
}

// setting holds the settings that an operator chooses.
type setting struct{ ttl, probe time.Duration }

var fullSettings = []setting{
	{2 * time.Second, 0},
	{2 * time.Second, 500 * time.Millisecond},
	{10 * time.Second, 0},
	{10 * time.Second, time.Second},
	{time.Minute, 5 * time.Second},
}

func full() bool { return os.Getenv("E2E_PROOF") == "full" }

// act is a way to revoke a key and to restore it.
type act struct {
	name       string
	take, give func()
	away       bool // the KMS denies nothing: only the TTL limits access
	code       string
	drains     bool  // the proxy is already draining
	part       *part // what is revoked; nil for the whole key
}

func (s *stage) acts(set setting) []act {
	c := s.customer
	retire := func() {}
	acts := []act{
		{name: "DisableKey", take: c.disable, give: c.enable, code: "KMS.DisabledException"},
		{
			name: "KMS stopped (SIGSTOP)", take: func() { c.signal(syscall.SIGSTOP) }, give: func() { c.signal(syscall.SIGCONT) },
			away: true, code: "ServiceUnavailable",
		},
	}

	more := []act{
		{name: "ScheduleKeyDeletion", take: c.scheduleDeletion, give: c.cancelDeletion, code: "KMS.KMSInvalidStateException"},
		{name: "denied by policy", take: func() { c.policy(allowAccount, denyProxy) }, give: func() { c.policy(allowAccount) }, code: "AccessDenied"},
		{name: "grant retired", take: func() { retire() }, give: func() { c.policy(allowAccount) }, code: "AccessDenied"},
		{name: "connection refused", take: c.relay.refuse, give: c.openRelay, away: true, code: "ServiceUnavailable"},
		{name: "black hole", take: func() { c.must(nil, c.relay.swallow()) }, give: c.openRelay, away: true, code: "ServiceUnavailable"},
		{name: "throttled", take: func() { c.faults(`{"throttle_next":1000000000}`) }, give: func() { c.faults("{}") }, away: true, code: "SlowDown"},
		{name: "HTML 403 of a balancer", take: func() { c.must(nil, c.relay.portal()) }, give: c.openRelay, away: true, code: "ServiceUnavailable"},
	}

	parts := []act{
		{name: "disabled during the drain", take: c.disable, give: c.enable, drains: true},
		{
			name: "one bucket denied by its context", take: func() { c.policy(allowAccount, denyBucket(s.bucket)) },
			give: func() { c.policy(allowAccount) }, code: "AccessDenied", part: &part{bucket: s.bucket, beside: keptBucket, key: "default"},
		},
		{
			name: "an older key version disabled", take: func() { s.keys("disable", "--version", "1") }, give: func() { s.keys("enable", "--version", "1") },
			code: "AccessDenied", part: &part{bucket: versionsBucket, beside: versionsBucket, key: "files", old: true},
		},
	}

	switch {
	case s.full && set.ttl == time.Minute:
		acts = append(acts, parts[:2]...)
	case s.full:
		acts = append(append(acts, more...), parts...)
	case set.ttl == 2*time.Second:
		acts = append(append(acts, more...), parts[0])
	default:
		acts = append(append(acts[:1], more[1:3]...), parts...) // one that a probe sees, and each kind of response
	}

	for i := range acts {
		if acts[i].name == "grant retired" {
			take := acts[i].take
			acts[i].take = func() { take() }
			s.before["grant retired"] = func() { retire = c.grant() }
		}
	}
	return acts
}

// play runs one act.
func (s *stage) play(t *testing.T, set setting, a act) {
	defer progress(t)
	if before := s.before[a.name]; before != nil {
		before()
	}

	s.awaitService(t)
	key, of := "default", s.bucket
	if a.part != nil {
		key, of = a.part.key, a.part.bucket
		beside := s.startBeside(t, a.part.beside)
		defer beside.mustRunOn(t)
	}

	load := s.startLoad(t, of)
	time.Sleep(set.ttl + set.ttl/5) // until leases have been renewed, at different times
	load.mustRun(t)
	window := s.window(t, key)
	if a.drains {
		s.playDrain(t, set, a, load, window)
		return
	}

	if a.away {
		window = set.ttl
	}
	a.take()
	taken := time.Now() // the KMS has confirmed the change
	time.Sleep(time.Until(taken.Add(window + time.Second)))
	stated := s.window(t, key)
	// If the KMS was too slow for a probe, on a busy machine, the window is
	// the TTL until the next probe. /metrics then states the TTL.
	for i := 0; i < 20 && stated != window; i++ {
		time.Sleep(250 * time.Millisecond)
		stated = s.window(t, key)
	}

	time.Sleep(time.Until(taken.Add(set.ttl + time.Second + outageWait)))
	arrived := load.last()
	last := arrived.at.Sub(taken)
	load.stop(t, a)
	if last > window+readLag {
		t.Errorf("the last byte, of %s, came after %v, at %v; the window is %v", arrived.of, last, arrived.at.UTC(), window)
	}

	if stated != window {
		t.Errorf("/metrics states a window of %v, in force is %v", stated, window)
	}
	if after := s.metric(t, "cmekproxy_revocation_last_byte_seconds", `key="`+key+`"`); after > window.Seconds() {
		t.Errorf("/metrics has the last byte %v s after the first answer, the window is %v", after, window)
	}

	given := time.Now()
	a.give()
	s.awaitService(t)
	back := time.Since(given)
	if !a.away && set.probe > 0 && back > set.probe+probeAnswer {
		t.Errorf("back after %v, a probe is every %v", back, set.probe)
	}
	s.rows = append(s.rows, fmt.Sprintf("| %v | %s | %s | %v | %.2f s | %.2f s |", set.ttl, orOff(set.probe), a.name, window, last.Seconds(), back.Seconds()))
}

const (
	outageWait  = 3 * time.Second
	probeAnswer = time.Second // for the probe, its response, and delays on a busy machine
	// readLag is for data in a client's own buffers, read at downloadRate.
	// It has already left the proxy.
	readLag = 100 * time.Millisecond
)

func orOff(d time.Duration) string {
	if d == 0 {
		return "off"
	}
	return d.String()
}

// stage is the proxy between a store and the customer's KMS.
type stage struct {
	t        *testing.T
	full     bool
	customer *customer
	store    *stack
	proxy    *process
	env      []string // of proxy
	starts   int
	endpoint endpoint
	admin    string
	config   string
	keyLine  string
	keyFile  string // of the second key, which has several versions
	bucket   string
	big      int64
	before   map[string]func() // preparation of an act, by its name
	rows     []string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, full: full(), bucket: "revocation", big: 128 * mib, before: make(map[string]func())}
	if s.full {
		s.big = 1024 * mib
	}

	s.store = &stack{dir: storeDir(t), proxied: true}
	s.store.store = s.store.startStore(t, "http", newCredentials(), "", "")
	s.customer = startCustomer(t)
	client := newCredentials()
	s.env = environment("AWS_ACCESS_KEY_ID="+kmsAccessKey, "AWS_SECRET_ACCESS_KEY=example", "AWS_EC2_METADATA_DISABLED=true",
		"ORIGIN_ACCESS_KEY="+s.store.store.accessKey, "ORIGIN_SECRET_KEY="+s.store.store.secret,
		"APP_ACCESS_KEY="+client.accessKey, "APP_SECRET_KEY="+client.secret)
	address := freeAddress(t)
	s.admin = "http://" + freeAddress(t)
	s.keyFile = filepath.Join(t.TempDir(), "files.key")
	s.keys("new")
	s.keyLine = fmt.Sprintf("{name: default, provider: aws-kms, key_id: %q, endpoint: %q}, {name: files, provider: local, key_file: %q}",
		s.customer.key, "http://"+s.customer.relay.address, s.keyFile)
	s.config = s.store.writeConfig(t, "revocation", address, strings.TrimPrefix(s.admin, "http://"), s.keyLine, "", "")
	s.addRule("{buckets: [" + versionsBucket + "], key: files}")
	s.startProxy()
	s.endpoint = endpoint{name: "http", url: "http://" + address, credentials: client}
	s.fill(s.bucket)
	return s
}

// startProxy starts the proxy, or restarts it.
func (s *stage) startProxy() {
	s.t.Helper()
	s.starts++
	s.proxy = start(s.t, fmt.Sprint("proxy-revocation-", s.starts), s.env, tool(s.t, "cmekproxy"), "serve", "--config", s.config)
	s.store.logs = append(s.store.logs, s.proxy.log)
	s.proxy.waitFor(s.t, s.admin+"/readyz")
}

const smallObjects = 20

// fill stores the objects that clients will read.
func (s *stage) fill(bucket string) {
	s.t.Helper()
	api := newGoSDK(s.endpoint).s3
	if err := newGoSDK(s.endpoint).createBucket(bucket); err != nil {
		s.t.Fatal(err)
	}
	for i := range smallObjects {
		s.put(api, bucket, "small-"+strconv.Itoa(i), 64<<10)
	}
	s.put(api, bucket, "big", s.big)
}

func (s *stage) put(api *s3.Client, bucket, key string, size int64) {
	s.t.Helper()
	body := &pattern{size: size}
	if _, err := api.PutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(key), Body: body, ContentLength: &size}); err != nil {
		s.t.Fatal(err)
	}
}

// pattern is a body of the given size that is not held in memory.
type pattern struct{ size, at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.size-p.at))
	for i := range b[:n] {
		b[i] = byte((p.at + int64(i)) >> 8)
	}
	p.at += int64(n)
	return n, nil
}

func (p *pattern) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		p.at = offset
	case io.SeekCurrent:
		p.at += offset
	case io.SeekEnd:
		p.at = p.size + offset
	}
	return p.at, nil
}

// configure changes the settings of the running proxy with a reload.
func (s *stage) configure(set setting) {
	s.t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}

	plain, _, _ := strings.Cut(string(text), "dek_cache:")
	plain += fmt.Sprintf("dek_cache: {ttl: %v, revocation_probe: %v, outage_wait: %v}\n", set.ttl, set.probe, outageWait)
	if err := os.WriteFile(s.config, []byte(plain), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := s.proxy.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}

	want := set.ttl
	if set.probe > 0 {
		want = min(set.ttl, set.probe+min(2*time.Second, set.ttl/2, set.probe))
	}

	for deadline := time.Now().Add(startTimeout); s.window(s.t, "default") != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("after SIGHUP the window is %v, want %v", s.window(s.t, "default"), want)
		}
	}
}

// awaitService waits until every small object can be read again.
func (s *stage) awaitService(t *testing.T) {
	t.Helper()
	api := s.api(nil)
	deadline := time.Now().Add(startTimeout)
	for i := range smallObjects {
		for err := s.readSmall(api, i); err != nil; err = s.readSmall(api, i) {
			if time.Now().After(deadline) {
				t.Fatalf("no service: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (s *stage) readSmall(api *s3.Client, i int) error {
	out, err := api.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String("small-" + strconv.Itoa(i))})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	_, err = io.Copy(io.Discard, out.Body)
	return err
}

func (s *stage) window(t *testing.T, key string) time.Duration {
	t.Helper()
	return time.Duration(s.metric(t, "cmekproxy_revocation_window_seconds", `key="`+key+`"`) * float64(time.Second))
}

// metric returns the value of a metric, summed over its labels. It returns 0
// if there is no such metric.
func (s *stage) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	for line := range strings.Lines(string(pull(t, s.admin+"/metrics"))) {
		line = strings.TrimSpace(line)
		end := strings.LastIndexByte(line, ' ')
		if end < 0 {
			continue
		}
		series, value := line[:end], line[end+1:]
		metric, rest, _ := strings.Cut(series, "{")
		if metric != name || !containsAll(rest, labels) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(line, err)
		}
		sum += v
	}
	return sum
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

func (s *stage) table() string {
	return "| ttl | probe | what happens | window | last byte after | service back after |\n|---|---|---|---|---|---|\n" + strings.Join(s.rows, "\n") + "\n"
}

// api returns a client that does not retry.
func (s *stage) api(transport http.RoundTripper) *s3.Client {
	return s3.New(newGoSDK(s.endpoint).s3.Options(), func(o *s3.Options) {
		o.RetryMaxAttempts = 1
		if transport != nil {
			o.HTTPClient = &http.Client{Transport: transport}
		}
	})
}
