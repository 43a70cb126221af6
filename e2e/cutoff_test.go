package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const (
	slowTransfers = 6 // of each kind; the balancer gives each replica half of them
	slowSize      = 16 * mib
	slowRate      = 5 * mib // bytes a second
)

// cutOff takes the cable away from a replica in the middle of transfers. A
// transfer that breaks must fail, and clients that retry recover at the other
// replica. The data keys of the replica end with the TTL, because it cannot
// ask the KMS. With its cable it serves again.
func cutOff(t *testing.T, f *fleet) {
	lonely := f.nodes[0]
	api := newGoSDK(f.closing)
	file, text := randomFile(t, slowSize)
	if err := api.put(bucketOfFleet, "whole", text); err != nil {
		t.Fatal(err)
	}

	slow := startSlow(t, f, text)
	var retrying sync.WaitGroup
	for _, u := range uploaders[:2] { // aws-cli and boto3
		retrying.Go(func() {
			if err := u.upload(f.closing, t.TempDir(), file, bucketOfFleet, "retried-"+u.name); err != nil {
				t.Errorf("%s did not recover: %v", u.name, err)
			}
		})
	}

	time.Sleep(time.Second) // of three that each slow transfer takes
	lonely.cut(t)
	cut := time.Now()
	slow.wait(t, api)
	retrying.Wait()
	for _, u := range uploaders[:2] {
		checkWhole(t, api, bucketOfFleet, "retried-"+u.name, slowSize, sha256.Sum256(text))
	}

	time.Sleep(time.Until(cut.Add(fleetTTL + time.Second)))
	script := "import urllib.request; print(urllib.request.urlopen('http://" + lonely.address + ":9002/metrics').read().decode())"
	args := lonely.command(pythonCommand(), "-c", script)
	if out := must(t, environment(), args[0], args[1:]...); !strings.Contains(out, `cmekproxy_dek_cache_entries{key="default"} 0`) {
		t.Error("the replica without a network still has data keys after the TTL")
	}

	f.customer.disable()
	lonely.mend(t)
	within(t, "the replica is back", func() error {
		err := f.directly(lonely, f.client).read("whole")
		if err == nil {
			t.Fatal("the replica read with a key that was disabled while it was cut off")
		}
		if !refusedAs(err, http.StatusForbidden) && !refusedAs(err, http.StatusBadRequest, "KMS.DisabledException") {
			return err
		}
		return nil
	})
	f.customer.enable()
	within(t, "the replica serves", func() error { return f.directly(lonely, f.client).read("whole") })
	slow.check(t, api)
}

// slowLoad is transfers that are under way when the cable is taken away.
type slowLoad struct {
	text []byte
	all  sync.WaitGroup

	mu     sync.Mutex
	broken []error
	stored map[string]bool // uploads that were answered with 200
}

// startSlow starts the transfers on new connections, without retries.
func startSlow(t *testing.T, f *fleet, text []byte) *slowLoad {
	t.Helper()
	l := &slowLoad{text: text, stored: make(map[string]bool)}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust(f.closing), DisableKeepAlives: true}}
	signer := s3.NewPresignClient(newGoSDK(f.closing).s3)
	for i := range slowTransfers {
		get, err := signer.PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(bucketOfFleet), Key: aws.String("whole")})
		if err != nil {
			t.Fatal(err)
		}
		l.all.Go(func() { l.add("", l.download(client, get.URL)) })

		key, size := fmt.Sprint("slow-", i), int64(slowSize)
		put, err := signer.PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucketOfFleet), Key: &key, ContentLength: &size})
		if err != nil {
			t.Fatal(err)
		}
		l.all.Go(func() { l.add(key, l.upload(client, put.URL, put.SignedHeader)) })
	}
	return l
}

var errWrongBody = errors.New("a body that is not the object ended well")

func (l *slowLoad) download(client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(&paced{r: resp.Body, rate: slowRate, ctx: context.Background()})
	if err == nil && !bytes.Equal(got, l.text) {
		return errWrongBody
	}
	return err
}

func (l *slowLoad) upload(client *http.Client, url string, header http.Header) error {
	body := &paced{r: bytes.NewReader(l.text), rate: slowRate, ctx: context.Background()}
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPut, url, io.NopCloser(body))
	if err != nil {
		return err
	}
	r.Header, r.ContentLength = header, int64(len(l.text))
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func (l *slowLoad) add(key string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.broken = append(l.broken, err)
	} else if key != "" {
		l.stored[key] = true
	}
}

// wait waits for the transfers. Those through the replica that was cut off
// must have failed.
func (l *slowLoad) wait(t *testing.T, api *goSDK) {
	t.Helper()
	l.all.Wait()
	for _, err := range l.broken {
		if errors.Is(err, errWrongBody) {
			t.Error(err)
		}
	}
	if len(l.broken) == 0 || len(l.broken) == 2*slowTransfers || len(l.stored) == 0 {
		t.Errorf("%d of %d transfers broke, and %d uploads ended well: %v", len(l.broken), 2*slowTransfers, len(l.stored), l.broken)
	}
	l.check(t, api)
}

// check compares the uploads with what is stored.
func (l *slowLoad) check(t *testing.T, api *goSDK) {
	t.Helper()
	sizes, err := api.list(bucketOfFleet, "slow-")
	if err != nil {
		t.Error(err)
	}
	for key := range l.stored {
		if _, ok := sizes[key]; !ok {
			t.Errorf("%s was answered with 200, and is not stored", key)
		}
	}
	for key := range sizes { // also one whose response was lost
		if got, err := api.get(bucketOfFleet, key); err != nil || !bytes.Equal(got, l.text) {
			t.Errorf("%s is stored with %d bytes of %d, %v", key, len(got), len(l.text), err)
		}
	}
}
