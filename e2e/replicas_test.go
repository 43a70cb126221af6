package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/minio-go/v7"
)

const mib = 1 << 20

// cluster is two replicas of the proxy with the same configuration, one
// store and one KMS. A balancer sends each request to the next replica. With
// E2E_TARGET=store the balancer sends them to the store, and nothing is
// killed: failures there are not caused by the proxy.
type cluster struct {
	endpoint endpoint // of the balancer
	tls      endpoint // of the balancer, over TLS
	balancer *balancer
	replicas []*replica
	store    *stack
	kms      string   // its URL
	config   string   // path of a replica's configuration
	env      []string // of the replicas
}

// replica is a proxy that can be killed and restarted.
type replica struct {
	name    string
	address string
	start   func() *process
	process *process
}

func (r *replica) kill(t *testing.T) {
	t.Helper()
	if err := r.process.cmd.Process.Kill(); err != nil { // SIGKILL
		t.Error(err)
	}
	<-r.process.done
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	s := &stack{dir: storeDir(t), versions: storeDir(t), proxied: os.Getenv("E2E_TARGET") != "store"}
	s.store = s.startStore(t, "http", newCredentials(), "", "")
	c := &cluster{store: s}
	if !s.proxied {
		c.balance(t, []string{s.store.host()}, s.store.credentials)
		return c
	}

	env, keyConfig, kms := startKMS(t)
	client := newCredentials()
	env = append(env, "ORIGIN_ACCESS_KEY="+s.store.accessKey, "ORIGIN_SECRET_KEY="+s.store.secret,
		"APP_ACCESS_KEY="+client.accessKey, "APP_SECRET_KEY="+client.secret)
	var addresses []string
	for i := range 2 {
		r := &replica{name: fmt.Sprintf("replica-%d", i+1), address: freeAddress(t)}
		admin := freeAddress(t)
		config := s.writeConfig(t, r.name, r.address, admin, keyConfig, "", "")
		c.config, c.env, c.kms = config, env, kms
		starts := 0
		r.start = func() *process {
			starts++
			p := start(t, fmt.Sprintf("%s.%d", r.name, starts), env, tool(t, "cmekproxy"), "serve", "--config", config)
			s.logs = append(s.logs, p.log)
			p.waitFor(t, "http://"+admin+"/readyz")
			return p
		}
		r.process = r.start()
		c.replicas, addresses = append(c.replicas, r), append(addresses, r.address)
	}

	c.balance(t, addresses, client)
	return c
}

// balance starts the balancer.
func (c *cluster) balance(t *testing.T, targets []string, client credentials) {
	t.Helper()
	c.balancer = newBalancer(targets)
	c.endpoint = endpoint{name: "http", url: c.balancer.serve(t, "", ""), credentials: client}
	cert, key := newCertificate(t)
	c.tls = endpoint{name: "https", url: c.balancer.serve(t, cert, key), ca: cert, credentials: client}
}

// balancer sends each request to the next target. If that target refuses the
// connection, it tries the one after it.
type balancer struct {
	targets []string
	turn    atomic.Int64
	sent    atomic.Int64 // bytes of bodies
	watch   atomic.Pointer[watch]
}

// watch calls do once, after the given number of bytes has been sent.
type watch struct {
	at   int64
	once sync.Once
	do   func()
}

func newBalancer(targets []string) *balancer { return &balancer{targets: targets} }

// serve returns the balancer's URL. Without a certificate, it serves plain
// HTTP.
func (b *balancer) serve(t *testing.T, cert, key string) string {
	t.Helper()
	server := httptest.NewUnstartedServer(b.handler())
	t.Cleanup(server.Close)
	if cert == "" {
		server.Start()
		return server.URL
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	return server.URL
}

func (b *balancer) handler() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "replica"
			r.Out.Host = r.In.Host // the signature covers it
			if r.Out.Body != nil && r.Out.Body != http.NoBody {
				r.Out.Body = &counted{r.Out.Body, b}
			}
		},
		Transport:     &http.Transport{DialContext: b.dial, DisableKeepAlives: true, DisableCompression: true},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // connections break here on purpose
	}
}

func (b *balancer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	first := int(b.turn.Add(1))
	var failures error
	for i := range b.targets {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.targets[(first+i)%len(b.targets)])
		if err == nil {
			return conn, nil
		}
		failures = errors.Join(failures, err)
	}
	return nil, failures
}

// after arranges that do is called when n more bytes have passed.
func (b *balancer) after(n int64, do func()) { b.watch.Store(&watch{at: b.sent.Load() + n, do: do}) }

type counted struct {
	io.ReadCloser
	b *balancer
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if sent := c.b.sent.Add(int64(n)); n > 0 {
		if w := c.b.watch.Load(); w != nil && sent >= w.at {
			w.once.Do(w.do)
		}
	}
	return n, err
}

// uploaders send a file in parts of 8 MiB, eight at a time.
var uploaders = []struct {
	name   string
	upload func(e endpoint, dir, file, bucket, key string) error
}{
	{"aws-cli", func(e endpoint, dir, file, bucket, key string) error {
		_, err := newAWSCLI(e, dir).run("s3", "cp", "--no-progress", file, "s3://"+bucket+"/"+key)
		return err
	}},
	{"boto3", func(e endpoint, dir, file, bucket, key string) error {
		return runUploader(e, pythonCommand(), "py/upload.py", file, bucket, key)
	}},
	{"js-sdk", func(e endpoint, dir, file, bucket, key string) error {
		return runUploader(e, "node", "js/upload.mjs", file, bucket, key)
	}},
	{"rclone", func(e endpoint, dir, file, bucket, key string) error {
		c := newRclone(e, dir)
		_, err := runTool(c.env, nil, "rclone", "copyto", "--s3-chunk-size", "8Mi", "--s3-upload-concurrency", "8", file, "e2e:"+bucket+"/"+key)
		return err
	}},
	{"minio-go", func(e endpoint, dir, file, bucket, key string) error {
		_, err := newMinioGo(e).api.FPutObject(context.Background(), bucket, key, file, minio.PutObjectOptions{PartSize: 8 * mib, NumThreads: 8})
		return err
	}},
}

func runUploader(e endpoint, command, script, file, bucket, key string) error {
	cmd := exec.CommandContext(context.Background(), command, script, e.url, region, bucket, key, file)
	cmd.Env = environment("AWS_ACCESS_KEY_ID="+e.accessKey, "AWS_SECRET_ACCESS_KEY="+e.secret, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")
	if e.ca != "" {
		cmd.Env = append(cmd.Env, "AWS_CA_BUNDLE="+e.ca)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// TestReplicas uploads 200 MiB with each client while one replica is killed
// with SIGKILL and restarted.
func TestReplicas(t *testing.T) {
	c := startCluster(t)
	judge := newGoSDK(c.endpoint)
	const bucket = "replicas"
	if err := judge.createBucket(bucket); err != nil {
		t.Fatal(err)
	}

	file, text := randomFile(t, 200*mib)
	want := sha256.Sum256(text)
	for i, u := range uploaders {
		if !selected(u.name) {
			continue
		}
		t.Run(u.name, func(t *testing.T) {
			defer progress(t)
			var killed sync.WaitGroup
			if c.store.proxied {
				victim := c.replicas[i%2]
				killed.Add(1)
				c.balancer.after(60*mib, func() {
					go func() {
						defer killed.Done()
						victim.kill(t)
						victim.process = victim.start()
					}()
				})
			}
			if err := u.upload(c.endpoint, t.TempDir(), file, bucket, u.name); err != nil {
				t.Fatal(err)
			}
			killed.Wait()
			checkWhole(t, judge, bucket, u.name, int64(len(text)), want)
		})
	}

	t.Run("resumed", func(t *testing.T) { resumeAfterRestart(t, c, bucket, text[:62*mib]) })
	t.Run("layouts", func(t *testing.T) { checkLayouts(t, judge, bucket, text) })
	t.Run("decrypted", func(t *testing.T) { checkDecrypted(t, c, bucket, text) })
	t.Run("at rest", func(t *testing.T) { checkAtRest(t, c, text) })
	checkLogs(t, c.store)
}

// randomFile returns the path of a random file for the clients, and its
// content for the tests.
func randomFile(t *testing.T, size int) (path string, text []byte) {
	t.Helper()
	text = make([]byte, size)
	_, _ = rand.Read(text)
	path = filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, text
}

// checkWhole compares every byte of an object, and its size in HEAD and in a
// listing.
func checkWhole(t *testing.T, judge *goSDK, bucket, key string, size int64, want [sha256.Size]byte) {
	t.Helper()
	head, err := judge.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: &key})
	if err != nil || *head.ContentLength != size {
		t.Errorf("%s: HEAD: %v, %v", key, head, err)
	}

	sizes, err := judge.list(bucket, key)
	if err != nil || sizes[key] != size {
		t.Errorf("%s is listed with %d bytes, has %d: %v", key, sizes[key], size, err)
	}

	out, err := judge.s3.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(bucket), Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, out.Body); err != nil || n != size || [sha256.Size]byte(sum.Sum(nil)) != want {
		t.Errorf("%s: %d of %d bytes, SHA-256 %s, %v", key, n, size, hex.EncodeToString(sum.Sum(nil)), err)
	}
}

// resumeAfterRestart begins an upload, kills all replicas, and completes the
// upload from what the store lists.
func resumeAfterRestart(t *testing.T, c *cluster, bucket string, text []byte) {
	defer progress(t)
	const key, size = "resumed", 8 * mib
	api := newGoSDK(c.endpoint).s3
	created, err := api.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: aws.String(key)})
	if err != nil {
		t.Fatal(err)
	}

	sendParts(t, api, bucket, key, *created.UploadId, text, size, func(number int32) bool { return number%2 == 1 })
	for _, r := range c.replicas {
		r.kill(t)
	}

	for _, r := range c.replicas {
		r.process = r.start()
	}
	uploads, err := api.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String(bucket), Prefix: aws.String(key)})
	if err != nil || len(uploads.Uploads) != 1 {
		t.Fatalf("%v, %v", uploads, err)
	}

	upload := *uploads.Uploads[0].UploadId
	parts := listParts(t, api, bucket, key, upload)
	sendParts(t, api, bucket, key, upload, text, size, func(number int32) bool { return parts[number] == nil })
	var list []types.CompletedPart
	all := listParts(t, api, bucket, key, upload)
	for number := int32(1); all[number] != nil; number++ {
		list = append(list, types.CompletedPart{PartNumber: aws.Int32(number), ETag: all[number].ETag})
		if want := min(size, len(text)-int(number-1)*size); *all[number].Size != int64(want) {
			t.Errorf("part %d is listed with %d bytes, has %d", number, *all[number].Size, want)
		}
	}

	if _, err := api.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(bucket), Key: aws.String(key), UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: list},
	}); err != nil {
		t.Fatal(err)
	}
	checkWhole(t, newGoSDK(c.endpoint), bucket, key, int64(len(text)), sha256.Sum256(text))
}

// sendParts sends the selected parts of text, eight at a time.
func sendParts(t *testing.T, api *s3.Client, bucket, key, upload string, text []byte, size int, wanted func(int32) bool) {
	t.Helper()
	var all sync.WaitGroup
	turns := make(chan struct{}, 8)
	for i := 0; i*size < len(text); i++ {
		number := int32(i + 1)
		if !wanted(number) {
			continue
		}
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			_, err := api.UploadPart(t.Context(), &s3.UploadPartInput{
				Bucket: &bucket, Key: &key, UploadId: &upload, PartNumber: &number, Body: bytes.NewReader(text[i*size : min((i+1)*size, len(text))]),
			})
			if err != nil {
				t.Errorf("part %d: %v", number, err)
			}
		})
	}
	all.Wait()
}

func listParts(t *testing.T, api *s3.Client, bucket, key, upload string) map[int32]*types.Part {
	t.Helper()
	parts := make(map[int32]*types.Part)
	pages := s3.NewListPartsPaginator(api, &s3.ListPartsInput{Bucket: &bucket, Key: &key, UploadId: &upload, MaxParts: aws.Int32(3)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range page.Parts {
			parts[*page.Parts[i].PartNumber] = &page.Parts[i]
		}
	}
	return parts
}

// checkAtRest searches everything in the store for pieces of the plaintext.
func checkAtRest(t *testing.T, c *cluster, text []byte) {
	defer progress(t)
	var pieces [][]byte
	for at := 0; at+64 <= len(text); at += 10*mib - 7 {
		pieces = append(pieces, text[at:at+64])
	}

	files, size, found, err := searchStore(c.store, func(data []byte) (int, bool) { // zeros are part of the format here
		for _, piece := range pieces {
			if i := bytes.Index(data, piece); i >= 0 {
				return i, true
			}
		}
		return 0, false
	})

	switch {
	case err != nil:
		t.Fatal(err)
	case size < int64(len(text)):
		t.Errorf("%d files of %d bytes are not what was stored", files, size)
	case c.store.proxied && len(found) > 0:
		t.Errorf("plaintext in %v", found)
	case !c.store.proxied && len(found) == 0:
		t.Error("the search finds nothing where nothing is encrypted")
	}
}
