package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// The credentials of the proxy at the KMS. kmsd uses the access key as the
// name of a user.
const (
	kmsAccessKey = "AKIDEXAMPLE"
	kmsUser      = "arn:aws:iam::111122223333:user/" + kmsAccessKey
)

// customer is the KMS process and its administrator, who uses the official
// client.
type customer struct {
	t       *testing.T
	process *process
	address string
	key     string // its ARN
	api     *awskms.Client
	relay   *relay // between the proxy and the KMS
}

func startCustomer(t *testing.T) *customer {
	t.Helper()
	c := &customer{t: t, address: freeAddress(t)}
	c.process = start(t, "customer-kms", environment(), tool(t, "kmsd"), "-listen", c.address, "-create-key", "1", "-region", region,
		"-state", filepath.Join(t.TempDir(), "kms.json"))
	var ready struct{ Keys []string }
	if err := json.Unmarshal([]byte(c.process.firstLine(t)), &ready); err != nil || len(ready.Keys) != 1 {
		t.Fatalf("kmsd: %v, %v", ready, err)
	}
	c.key = ready.Keys[0]
	c.api = awskms.New(awskms.Options{
		BaseEndpoint: aws.String("http://" + c.address), Region: region,
		Credentials: awscredentials.NewStaticCredentialsProvider("AKCUSTOMER", "customer", ""),
	})
	c.relay = newRelay(t, c.address)
	return c
}

func (c *customer) must(_ any, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *customer) disable() {
	c.must(c.api.DisableKey(context.Background(), &awskms.DisableKeyInput{KeyId: &c.key}))
}

func (c *customer) enable() {
	c.must(c.api.EnableKey(context.Background(), &awskms.EnableKeyInput{KeyId: &c.key}))
}

func (c *customer) scheduleDeletion() {
	c.must(c.api.ScheduleKeyDeletion(context.Background(), &awskms.ScheduleKeyDeletionInput{KeyId: &c.key, PendingWindowInDays: aws.Int32(7)}))
}

func (c *customer) cancelDeletion() {
	c.must(c.api.CancelKeyDeletion(context.Background(), &awskms.CancelKeyDeletionInput{KeyId: &c.key}))
	c.enable()
}

// policy replaces the policy of the key.
func (c *customer) policy(statements ...string) {
	document := `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
	c.must(c.api.PutKeyPolicy(context.Background(), &awskms.PutKeyPolicyInput{KeyId: &c.key, Policy: &document}))
}

const (
	allowAccount = `{"Sid":"account","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}`
	denyProxy    = `{"Sid":"deny","Effect":"Deny","Principal":{"AWS":"` + kmsUser + `"},"Action":"kms:*","Resource":"*"}`
	allowOther   = `{"Sid":"other","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/other"},"Action":"kms:*","Resource":"*"}`
)

// denyBucket returns a statement that denies requests whose encryption
// context names a bucket.
func denyBucket(bucket string) string {
	return `{"Sid":"bucket","Effect":"Deny","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*",` +
		`"Condition":{"StringEquals":{"kms:EncryptionContext:bucket":"` + bucket + `"}}}`
}

// grant allows the proxy to use the key by a grant alone, and returns a
// function that retires the grant.
func (c *customer) grant() (retire func()) {
	out, err := c.api.CreateGrant(context.Background(), &awskms.CreateGrantInput{
		KeyId: &c.key, GranteePrincipal: aws.String(kmsUser),
		Operations: []kmstypes.GrantOperation{kmstypes.GrantOperationGenerateDataKey, kmstypes.GrantOperationDecrypt, kmstypes.GrantOperationEncrypt},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.policy(allowOther)
	return func() {
		c.must(c.api.RetireGrant(context.Background(), &awskms.RetireGrantInput{KeyId: &c.key, GrantId: out.GrantId}))
	}
}

// faults sets how the KMS misbehaves, in the format of kmsd. "{}" ends all
// faults.
func (c *customer) faults(f string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPut, "http://"+c.address+"/_control", strings.NewReader(`{"faults":`+f+`}`))
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.t.Fatal(resp.Status)
	}
}

// calls returns how many calls of an operation the KMS has received.
func (c *customer) calls(operation string) int {
	c.t.Helper()
	var out struct{ Calls map[string]int }
	if err := json.Unmarshal(pull(c.t, "http://"+c.address+"/_control"), &out); err != nil {
		c.t.Fatal(err)
	}
	return out.Calls[operation]
}

func (c *customer) openRelay() { c.must(nil, c.relay.open()) }

func (c *customer) signal(s syscall.Signal) { c.must(nil, c.process.cmd.Process.Signal(s)) }

func pull(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", url, resp.Status, bytes.TrimSpace(body), err)
	}
	return body
}

// relay forwards bytes between the proxy and the KMS. It can also refuse
// connections, or accept data and never answer.
type relay struct {
	address, target string
	swallowing      atomic.Bool

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	hole     []int // file descriptors
	page     *http.Server
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	r := &relay{address: freeAddress(t), target: target, conns: make(map[net.Conn]bool)}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.refuse() })
	return r
}

// open makes the relay forward connections again.
func (r *relay) open() error {
	r.fill()
	r.swallowing.Store(false)
	r.drop()
	r.mu.Lock()
	if r.page != nil {
		_ = r.page.Close()
		r.page = nil
	}

	r.mu.Unlock()
	listener, err := net.Listen("tcp", r.address)
	if err != nil {
		return err
	}

	r.mu.Lock()
	r.listener = listener
	r.mu.Unlock()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go r.pass(listener, conn)
		}
	}()
	return nil
}

// refuse resets all connections, and new ones are refused.
func (r *relay) refuse() {
	r.mu.Lock()
	if r.listener != nil {
		_ = r.listener.Close()
		r.listener = nil
	}
	r.mu.Unlock()
	r.fill()
	r.drop()
}

// portal answers every request with a web page, as a firewall does, or a
// load balancer without backends.
func (r *relay) portal() error {
	r.refuse()
	listener, err := net.Listen("tcp", r.address)
	if err != nil {
		return err
	}
	page := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<html><head><title>403 Forbidden</title></head><body><h1>403 Forbidden</h1></body></html>")
	})}
	r.mu.Lock()
	r.listener, r.page = listener, page
	r.mu.Unlock()
	go func() { _ = page.Serve(listener) }()
	return nil
}

// swallow makes the relay a black hole. Data on open connections is dropped
// silently. The queue of connections to be accepted is full, so the packets
// that open new ones are dropped too.
func (r *relay) swallow() error {
	r.swallowing.Store(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.listener.Close()
	host, port, err := net.SplitHostPort(r.address)
	if err != nil {
		return err
	}

	address := &syscall.SockaddrInet4{Addr: [4]byte(net.ParseIP(host).To4())}
	if _, err := fmt.Sscan(port, &address.Port); err != nil {
		return err
	}

	hole, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}

	r.hole = append(r.hole, hole)
	if err := errors.Join(syscall.SetsockoptInt(hole, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), syscall.Bind(hole, address), syscall.Listen(hole, 0)); err != nil {
		return err
	}

	for range 8 {
		conn, err := net.DialTimeout("tcp", r.address, 200*time.Millisecond)
		if err != nil {
			return nil // full
		}
		r.conns[conn] = true
	}
	return errors.New("the queue of connections does not fill up")
}

func (r *relay) fill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, fd := range r.hole {
		_ = syscall.Close(fd)
	}
	r.hole = nil
}

func (r *relay) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.conns {
		_ = conn.Close()
		delete(r.conns, conn)
	}
}

// pass forwards a connection that the listener has accepted, unless refuse
// came between: it would not know this connection.
func (r *relay) pass(listener net.Listener, client net.Conn) {
	server, err := net.Dial("tcp", r.target)
	if err != nil {
		_ = client.Close()
		return
	}

	r.mu.Lock()
	if r.listener != listener {
		r.mu.Unlock()
		_ = errors.Join(client.Close(), server.Close())
		return
	}
	r.conns[client], r.conns[server] = true, true
	r.mu.Unlock()
	copyBytes := func(to, from net.Conn) {
		buffer := make([]byte, 16<<10)
		for {
			n, err := from.Read(buffer)
			if r.swallowing.Load() {
				if err != nil {
					return // without closing the other side
				}
				continue
			}
			if n > 0 {
				_, _ = to.Write(buffer[:n])
			}
			if err != nil {
				_ = to.Close()
				_ = from.Close()
				return
			}
		}
	}
	go copyBytes(server, client)
	copyBytes(client, server)
}
