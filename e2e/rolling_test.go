package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
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

// fleet is two replicas on nodes of their own. HAProxy balances them in three
// ways, and asks /readyz every 250 ms.
type fleet struct {
	nodes    []*node
	replicas []*replica
	customer *customer
	store    *stack
	client   credentials

	config []*volume // of each replica
	tls    *volume   // of both, with a certificate and its key
	secret *volume   // of both, with the secrets of clients
	ca     string    // path of the certificates that clients trust
	next   [2]string // paths of the next certificate and its key

	ports [2]string // on each node's host address, of the store and the KMS

	// connections balances connections, as kube-proxy and network load
	// balancers do. closing also closes those to a replica that fails its
	// check. requests balances requests, and keeps connections to the replicas
	// for the next ones.
	connections, closing, requests endpoint
}

// The client whose secret changes has this name and access key.
const rotatedClient = "rotated"

const bucketOfFleet = "fleet"

func startFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{nodes: newNodes(t, 2), store: &stack{dir: storeDir(t), proxied: true}, client: newCredentials()}
	f.store.store = f.store.startStore(t, "http", newCredentials(), "", "")
	f.customer = startCustomer(t)
	f.makeFiles(t)

	f.ports = [2]string{port(freeAddress(t)), port(freeAddress(t))}
	for i, n := range f.nodes {
		f.config = append(f.config, newVolume(t, map[string]string{"config.yaml": f.configOf(n, time.Second)}))
		f.replicas = append(f.replicas, f.newReplica(t, i))
	}
	f.balance(t) // also what the replicas send to the store and the KMS
	for _, r := range f.replicas {
		r.process = r.start()
	}
	time.Sleep(3 * checkInterval) // until HAProxy knows
	return f
}

func port(address string) string { return address[len("127.0.0.1:"):] }

// makeFiles makes the certificates and the secrets.
func (f *fleet) makeFiles(t *testing.T) {
	t.Helper()
	cert, key := newCertificate(t)
	f.next[0], f.next[1] = newCertificate(t)
	f.ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(f.ca, []byte(read(t, cert)+read(t, f.next[0])), 0o600); err != nil {
		t.Fatal(err)
	}
	f.tls = newVolume(t, map[string]string{"tls.crt": read(t, cert), "tls.key": read(t, key)})
	f.secret = newVolume(t, map[string]string{"app": f.client.secret, rotatedClient: newCredentials().secret})
}

func (f *fleet) configOf(n *node, probe time.Duration) string {
	return fmt.Sprintf(`listen: %[1]s:9000
health_listen: %[1]s:9002
metrics_listen: %[1]s:9002
tls: {cert_file: %[2]q, key_file: %[3]q}
origin:
  endpoint: http://%[4]s:%[5]s
  region: %[6]s
  access_key: ${ORIGIN_ACCESS_KEY}
  secret_key: ${ORIGIN_SECRET_KEY}
clients:
  - name: app
    access_key: %[7]s
    secret_key: file:%[8]s
    allow: [{buckets: ["*"], actions: [read, write, delete, list, admin]}]
  - name: %[9]s
    access_key: %[9]s
    secret_key: file:%[10]s
    allow: [{buckets: ["*"], actions: [list]}]
limits: {shutdown_delay: %[11]v, shutdown_grace: 20s}
dek_cache: {ttl: %[12]v, revocation_probe: %[15]v}
keys: [{name: default, provider: aws-kms, key_id: %[13]q, endpoint: "http://%[4]s:%[14]s", insecure: true}]
encryption: {rules: [{buckets: ["*"], key: default}]}
`, n.address, f.tls.path("tls.crt"), f.tls.path("tls.key"), n.host, f.ports[0], region, f.client.accessKey, f.secret.path("app"),
		rotatedClient, f.secret.path(rotatedClient), shutdownDelay, fleetTTL, f.customer.key, f.ports[1], probe)
}

// Clients pause for at most twice shutdownDelay. A connection that is idle for
// three times as long may be closed while a request is on its way.
const (
	checkInterval = 250 * time.Millisecond
	shutdownDelay = 1500 * time.Millisecond
	fleetTTL      = 3 * time.Second
)

func (f *fleet) newReplica(t *testing.T, i int) *replica {
	t.Helper()
	n, starts := f.nodes[i], 0
	env := environment("AWS_ACCESS_KEY_ID="+kmsAccessKey, "AWS_SECRET_ACCESS_KEY=example", "AWS_EC2_METADATA_DISABLED=true",
		"ORIGIN_ACCESS_KEY="+f.store.store.accessKey, "ORIGIN_SECRET_KEY="+f.store.store.secret)
	r := &replica{name: fmt.Sprintf("replica-%d", i+1), address: n.address + ":9000"}
	r.start = func() *process {
		starts++
		command := n.command(tool(t, "cmekproxy"), "serve", "--config", f.config[i].path("config.yaml"))
		p := start(t, fmt.Sprintf("%s.%d", r.name, starts), env, command[0], command[1:]...)
		f.store.logs = append(f.store.logs, p.log)
		p.waitFor(t, "http://"+n.address+":9002/readyz")
		return p
	}
	return r
}

// balance starts HAProxy. It also forwards what the replicas send to the store
// and to the KMS, which listen on 127.0.0.1.
func (f *fleet) balance(t *testing.T) {
	t.Helper()
	text := `global
  log stdout format raw local0
defaults
  log global
  timeout connect 2s
  timeout client 15s
  timeout server 15s
  timeout check 1s
  option httpchk GET /readyz
  default-server check port 9002 inter ` + strconv.Itoa(int(checkInterval.Milliseconds())) + "ms fall 1 rise 1\n"
	listen := func(name, mode, more, serverMore string) endpoint {
		address := freeAddress(t)
		text += fmt.Sprintf("listen %s\n  mode %s\n  option %slog\n  bind %s\n  %s\n", name, mode, mode, address, more)
		for i, n := range f.nodes {
			text += fmt.Sprintf("  server replica-%d %s:9000 %s\n", i+1, n.address, serverMore)
		}
		e := endpoint{name: name, url: "https://" + address, ca: f.ca, credentials: f.client}
		if mode == "http" {
			e.url, e.ca = "http://"+address, ""
		}
		return e
	}

	f.connections = listen("connections", "tcp", "retries 0", "")
	f.closing = listen("closing", "tcp", "retries 0", "on-marked-down shutdown-sessions")
	f.requests = listen("requests", "http", "http-reuse always", "ssl verify required no-check-ssl ca-file "+f.ca)
	for i, target := range []string{f.store.store.host(), f.customer.address} {
		text += fmt.Sprintf("listen to-%s\n  mode tcp\n  server target %s no-check\n", target, target)
		for _, n := range f.nodes {
			text += fmt.Sprintf("  bind %s:%s\n", n.host, f.ports[i])
		}
	}

	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	haproxy := start(t, "haproxy", environment(), "haproxy", "-db", "-f", path)
	haproxy.waitForPort(t, f.connections.host())
}

// swap replaces all files that the replicas read, as the kubelet does, and
// waits until both replicas use them.
func (f *fleet) swap(t *testing.T, l *fleetLoad) {
	t.Helper()
	l.event("swap")
	before := credentials{rotatedClient, read(t, f.secret.path(rotatedClient))}
	after := credentials{rotatedClient, newCredentials().secret}
	f.secret.swap(t, map[string]string{"app": f.client.secret, rotatedClient: after.secret})
	f.tls.swap(t, map[string]string{"tls.crt": read(t, f.next[0]), "tls.key": read(t, f.next[1])})
	for i, n := range f.nodes {
		f.config[i].swap(t, map[string]string{"config.yaml": f.configOf(n, 500*time.Millisecond)})
		if err := f.replicas[i].process.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}

	next, _ := pem.Decode([]byte(read(t, f.next[0])))
	for _, n := range f.nodes {
		within(t, "the new secret", func() error { return f.directly(n, after).list() })
		if err := f.directly(n, before).list(); !refusedAs(err, http.StatusForbidden, "SignatureDoesNotMatch") {
			t.Errorf("%s: with the secret from before: %v", n.name, err)
		}

		within(t, "the new certificate", func() error {
			// The certificate is compared below.
			conn, err := tls.Dial("tcp", n.address+":9000", &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				return err
			}
			defer conn.Close()
			if leaf := conn.ConnectionState().PeerCertificates[0]; !bytes.Equal(leaf.Raw, next.Bytes) {
				return errors.New("it is the one from before")
			}
			return nil
		})

		within(t, "the new configuration", func() error {
			const window = `cmekproxy_revocation_window_seconds{key="default"} 1` // twice the probe
			if text := pull(t, "http://"+n.address+":9002/metrics"); !strings.Contains(string(text), window+"\n") {
				return errors.New("the window is not that of the new probe")
			}
			return nil
		})
	}
}

// within waits until try succeeds.
func within(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(startTimeout)
	for err := try(); err != nil; err = try() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// direct is a client of one replica, without a load balancer and retries.
type direct struct{ api *s3.Client }

func (f *fleet) directly(n *node, as credentials) direct {
	e := f.connections // for which the certificates are
	e.credentials = as
	c := newGoSDK(e)
	options := c.s3.Options()
	options.Retryer = aws.NopRetryer{}
	options.HTTPClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: trust(e), DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, n.address+":9000")
		},
	}}
	return direct{s3.New(options)}
}

func (d direct) list() error {
	_, err := d.api.ListObjectsV2(context.Background(), &s3.ListObjectsV2Input{Bucket: aws.String(bucketOfFleet)})
	return sdkError(err)
}

func (d direct) read(key string) error {
	out, err := d.api.GetObject(context.Background(), &s3.GetObjectInput{Bucket: aws.String(bucketOfFleet), Key: &key})
	if err != nil {
		return sdkError(err)
	}
	defer out.Body.Close()
	_, err = io.Copy(io.Discard, out.Body)
	return err
}

// restart replaces a replica as a rolling update does.
func (f *fleet) restart(t *testing.T, l *fleetLoad, r *replica) {
	t.Helper()
	l.event(r.name + " SIGTERM")
	if err := r.process.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}

	select {
	case <-r.process.done:
	case <-time.After(startTimeout):
		t.Fatalf("%s does not end", r.name)
	}
	l.event(r.name + " end")
	r.process = r.start()
	l.event(r.name + " ready")
	time.Sleep(3 * checkInterval) // until HAProxy knows
}

// TestRolling restarts both replicas in turn while clients that never retry
// read and write through two kinds of load balancer. No request may fail.
func TestRolling(t *testing.T) {
	if !selected("rolling") || os.Getenv("E2E_TARGET") == "store" {
		t.Skip("not selected, or without the proxy")
	}
	t.Parallel()
	f := startFleet(t)
	if err := newGoSDK(f.connections).createBucket(bucketOfFleet); err != nil {
		t.Fatal(err)
	}

	restarts := 1
	if n, err := strconv.Atoi(os.Getenv("E2E_RESTARTS")); err == nil {
		restarts = n
	} else if os.Getenv("E2E_FULL") != "" {
		restarts = 10
	}

	l := startFleetLoad(t, f)
	time.Sleep(time.Second)
	t.Run("swapped files", func(t *testing.T) {
		defer progress(t)
		f.swap(t, l)
	})
	t.Run("restarts", func(t *testing.T) {
		defer progress(t)
		for range restarts {
			for _, r := range f.replicas {
				f.restart(t, l, r)
			}
		}
		l.stop(t, 2*restarts)
	})
	t.Run("cut off", func(t *testing.T) {
		defer progress(t)
		cutOff(t, f)
	})
	checkLogs(t, f.store)
}
