package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// fleetLoad is traffic of clients that never retry.
type fleetLoad struct {
	cancel context.CancelFunc
	ctx    context.Context //nolint:containedctx // of all traffic
	all    sync.WaitGroup
	body   []byte

	mu     sync.Mutex
	done   map[string]int // requests or commands that succeeded, by client
	failed []failedRequest
	events []fleetEvent
}

type failedRequest struct {
	Client, Doing, Error string
	At                   time.Time
}

// fleetEvent is what the test does with a replica.
type fleetEvent struct {
	name string
	at   time.Time
}

func startFleetLoad(t *testing.T, f *fleet) *fleetLoad {
	t.Helper()
	l := &fleetLoad{body: make([]byte, 6*mib), done: make(map[string]int)}
	_, _ = rand.Read(l.body)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	t.Cleanup(l.cancel)
	for _, e := range []endpoint{f.connections, f.requests} {
		shared := newPool(e)
		for i := range 10 {
			l.all.Go(func() { l.goSDK(shared, i, false, 2*shutdownDelay) })
		}
		l.all.Go(func() { l.goSDK(newGoSDK(e), 10, true, 200*time.Millisecond) })
		l.all.Go(func() { l.goSDK(newGoSDK(e), 11, false, 100*time.Millisecond) })
		signed := signedGet(t, e)
		for range 40 {
			l.all.Go(func() { l.keepAlive(e, signed, 2*shutdownDelay) })
		}
		l.all.Go(func() { l.boto3(t, e) })
	}
	l.all.Go(func() { l.awsCLI(f.connections, t.TempDir()) })
	return l
}

// newPool returns a client whose requests share connections. In a pool that
// uses the last one first, others would be idle for longer than each client
// pauses, and be closed while a request is on its way.
func newPool(e endpoint) *goSDK {
	c := newGoSDK(e)
	options := c.s3.Options()
	options.HTTPClient = options.HTTPClient.(*awshttp.BuildableClient).WithTransportOptions(func(t *http.Transport) {
		t.IdleConnTimeout = 2 * shutdownDelay
	})
	c.s3 = s3.New(options)
	return c
}

func (l *fleetLoad) event(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, fleetEvent{name, time.Now()})
}

// report records the result of a request, or of a command.
func (l *fleetLoad) report(client, doing string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.done[client]++
	} else if l.ctx.Err() == nil {
		l.failed = append(l.failed, failedRequest{client, doing, err.Error(), time.Now()})
	}
}

// goSDK reads and writes with pauses of random length, so that its connections
// are idle for a while.
func (l *fleetLoad) goSDK(c *goSDK, number int, large bool, pauses time.Duration) {
	name := "go-sdk " + c.endpoint.name
	options := c.s3.Options()
	options.Retryer = aws.NopRetryer{}
	steps := &fleetSteps{l: l, api: s3.New(options), key: fmt.Sprint("go-", c.endpoint.name, number)}
	for l.ctx.Err() == nil {
		for _, step := range steps.all(large) {
			err := step.do()
			l.report(name, step.name, err)
			if pauses > 0 {
				pause(l.ctx, time.Duration(mathrand.Int64N(int64(pauses))))
			}
			if l.ctx.Err() != nil {
				return
			}
		}
	}
}

// fleetSteps are the requests of a client.
type fleetSteps struct {
	l   *fleetLoad
	api *s3.Client
	key string
}

type fleetStep struct {
	name string
	do   func() error
}

func (s *fleetSteps) all(large bool) []fleetStep {
	bucket := bucketOfFleet
	steps := []fleetStep{
		{"PUT small", func() error { return s.put(s.l.body[:1000]) }},
		{"GET small", func() error { return s.get(s.l.body[:1000]) }},
		{"HEAD", func() error {
			_, err := s.api.HeadObject(s.l.ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &s.key})
			return err
		}},
		{"LIST", func() error {
			_, err := s.api.ListObjectsV2(s.l.ctx, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &s.key})
			return err
		}},
	}
	if !large {
		return steps
	}
	return append(steps, []fleetStep{
		{"PUT 3 MiB", func() error { return s.put(s.l.body[:3*mib]) }},
		{"GET 3 MiB", func() error { return s.get(s.l.body[:3*mib]) }},
		{"multipart", s.multipart},
		{"GET multipart", func() error { return s.get(s.l.body) }},
	}...)
}

func (s *fleetSteps) put(body []byte) error {
	_, err := s.api.PutObject(s.l.ctx, &s3.PutObjectInput{Bucket: aws.String(bucketOfFleet), Key: &s.key, Body: bytes.NewReader(body)})
	return err
}

func (s *fleetSteps) get(want []byte) error {
	out, err := s.api.GetObject(s.l.ctx, &s3.GetObjectInput{Bucket: aws.String(bucketOfFleet), Key: &s.key})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	got, err := io.ReadAll(out.Body)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("read %d bytes, which are not the %d written", len(got), len(want))
	}
	return err
}

// multipart uploads two parts, one after the other.
func (s *fleetSteps) multipart() error {
	bucket := bucketOfFleet
	created, err := s.api.CreateMultipartUpload(s.l.ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &s.key})
	if err != nil {
		return err
	}

	var parts []types.CompletedPart
	for i, body := range [][]byte{s.l.body[:5*mib], s.l.body[5*mib:]} {
		number := aws.Int32(int32(i + 1))
		part, err := s.api.UploadPart(s.l.ctx, &s3.UploadPartInput{
			Bucket: &bucket, Key: &s.key, UploadId: created.UploadId, PartNumber: number, Body: bytes.NewReader(body),
		})
		if err != nil {
			return err
		}
		parts = append(parts, types.CompletedPart{PartNumber: number, ETag: part.ETag})
	}
	_, err = s.api.CompleteMultipartUpload(s.l.ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: &s.key, UploadId: created.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	return err
}

const keptAlive = "kept alive"

// signedGet stores an object, and returns the path of a request for it.
func signedGet(t *testing.T, e endpoint) string {
	t.Helper()
	bucket, key, c := bucketOfFleet, keptAlive+" "+e.name, newGoSDK(e)
	if err := c.put(bucket, key, []byte(keptAlive)); err != nil {
		t.Fatal(err)
	}
	signed, err := s3.NewPresignClient(c.s3).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(signed.URL, e.url)
}

// keepAlive sends requests on one connection, as long as the server leaves it
// open. http.Transport would send some of them again.
func (l *fleetLoad) keepAlive(e endpoint, path string, pauses time.Duration) {
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: " + e.host() + "\r\n\r\n")
	var conn net.Conn
	var responses *bufio.Reader
	for l.ctx.Err() == nil {
		if conn != nil && ended(conn, responses) {
			_ = conn.Close()
			conn = nil
		}
		last, err := false, error(nil)
		if conn == nil {
			conn, err = dialEndpoint(e)
			responses = bufio.NewReader(conn)
		}
		if err == nil {
			last, err = askOnce(conn, responses, request)
		}
		if err != nil && conn != nil {
			err = fmt.Errorf("%w, at %s from %s", err, time.Now().UTC().Format(time.TimeOnly+".000"), conn.LocalAddr()) // as in HAProxy's log
		}

		l.report("HTTP "+e.name, "GET", err)
		if conn != nil && (err != nil || last) {
			_ = conn.Close()
			conn = nil
		}
		pause(l.ctx, time.Duration(mathrand.Int64N(int64(pauses))))
	}
	if conn != nil {
		_ = conn.Close()
	}
}

func dialEndpoint(e endpoint) (net.Conn, error) {
	if e.ca == "" {
		return net.Dial("tcp", e.host())
	}
	conn, err := tls.Dial("tcp", e.host(), trust(e))
	if err != nil {
		return nil, err // not a nil *tls.Conn
	}
	return conn, nil
}

// ended reports whether the server has closed an idle connection.
func ended(conn net.Conn, responses *bufio.Reader) bool {
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := responses.Peek(1)
	_ = conn.SetReadDeadline(time.Time{})
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// askOnce reports whether the response is the last on its connection.
func askOnce(conn net.Conn, responses *bufio.Reader, request []byte) (last bool, err error) {
	if _, err := conn.Write(request); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(responses, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || string(body) != keptAlive) {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return resp.Close, err
}

// boto3 runs py/rolling.py until the end of the load.
func (l *fleetLoad) boto3(t *testing.T, e endpoint) {
	cmd := exec.CommandContext(context.Background(), pythonCommand(), "py/rolling.py", e.url, region, bucketOfFleet, e.name)
	cmd.Env = append(newAWSCLI(e, t.TempDir()).env, "AWS_CONFIG_FILE=/nonexistent")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Error(err)
		return
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return
	}

	context.AfterFunc(l.ctx, func() { _ = stdin.Close() })
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var result struct{ Doing, Error string }
		if err := json.Unmarshal(lines.Bytes(), &result); err != nil {
			t.Errorf("boto3 printed %q", lines.Text())
			continue
		}
		var failure error
		if result.Error != "" {
			failure = errors.New(result.Error)
		}
		l.report("boto3 "+e.name, result.Doing, failure)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("boto3: %v: %s", err, stderr.String())
	}
}

// awsCLI copies a file to an object of two parts and back, in a loop.
func (l *fleetLoad) awsCLI(e endpoint, dir string) {
	cli := newAWSCLI(e, dir)
	cli.env = append(cli.env, "AWS_MAX_ATTEMPTS=1", "AWS_RETRY_MODE=standard")
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	if err := os.WriteFile(there, l.body, 0o600); err != nil {
		l.report("aws-cli "+e.name, "preparing", err)
		return
	}
	object := "s3://" + bucketOfFleet + "/aws-cli"
	for l.ctx.Err() == nil {
		for _, copied := range [][2]string{{there, object}, {object, back}} {
			_, err := cli.run("s3", "cp", "--no-progress", copied[0], copied[1])
			l.report("aws-cli "+e.name, "s3 cp "+filepath.Base(copied[0]), err)
		}
	}
}

// stop ends the load. All requests must have succeeded.
func (l *fleetLoad) stop(t *testing.T, restarts int) {
	t.Helper()
	l.cancel()
	l.all.Wait()
	for client, n := range l.done {
		t.Logf("%-22s %5d requests", client, n)
	}
	for _, f := range l.failed {
		t.Errorf("%s: %s, %s: %s", f.Client, f.Doing, l.when(f.At), f.Error)
	}
	if len(l.failed) > 0 {
		t.Errorf("%.1f requests failed in each of %d restarts", float64(len(l.failed))/float64(restarts), restarts)
	}
	if len(l.done) != 7 {
		t.Errorf("only %v worked", l.done)
	}
}

// when says when a request failed.
func (l *fleetLoad) when(at time.Time) string {
	for _, e := range slices.Backward(l.events) {
		if d := at.Sub(e.at); d >= 0 {
			return fmt.Sprintf("%.3f s after %s", d.Seconds(), e.name)
		}
	}
	return "before the first event"
}
