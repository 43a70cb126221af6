package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
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

	storePort, kmsPort := port(freeAddress(t)), port(freeAddress(t))
	for i, n := range f.nodes {
		f.config = append(f.config, newVolume(t, map[string]string{"config.yaml": f.configOf(n, storePort, kmsPort)}))
		f.replicas = append(f.replicas, f.newReplica(t, i))
	}
	f.balance(t, storePort, kmsPort) // also what the replicas send to the store and the KMS
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

func (f *fleet) configOf(n *node, storePort, kmsPort string) string {
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
dek_cache: {ttl: %[12]v, revocation_probe: 1s}
keys: [{name: default, provider: aws-kms, key_id: %[13]q, endpoint: "http://%[4]s:%[14]s", insecure: true}]
encryption: {rules: [{buckets: ["*"], key: default}]}
`, n.address, f.tls.path("tls.crt"), f.tls.path("tls.key"), n.host, storePort, region, f.client.accessKey, f.secret.path("app"),
		rotatedClient, f.secret.path(rotatedClient), shutdownDelay, fleetTTL, f.customer.key, kmsPort)
}

const (
	checkInterval = 250 * time.Millisecond
	shutdownDelay = time.Second
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
func (f *fleet) balance(t *testing.T, storePort, kmsPort string) {
	t.Helper()
	text := `global
  log stdout format raw local0
defaults
  log global
  timeout connect 2s
  timeout client 1m
  timeout server 1m
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
	for _, forwarded := range [][2]string{{storePort, port(f.store.store.url[len("http://"):])}, {kmsPort, port(f.customer.relay.address)}} {
		text += fmt.Sprintf("listen to-%s\n  mode tcp\n  server target 127.0.0.1:%s no-check\n", forwarded[0], forwarded[1])
		for _, n := range f.nodes {
			text += fmt.Sprintf("  bind %s:%s\n", n.host, forwarded[0])
		}
	}

	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	haproxy := start(t, "haproxy", environment(), "haproxy", "-db", "-f", path)
	haproxy.waitForPort(t, f.connections.host())
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

	t.Run("restarts", func(t *testing.T) {
		defer progress(t)
		restarts := 1
		if n, err := strconv.Atoi(os.Getenv("E2E_RESTARTS")); err == nil {
			restarts = n
		} else if os.Getenv("E2E_FULL") != "" {
			restarts = 10
		}

		l := startFleetLoad(t, f)
		time.Sleep(time.Second)
		for range restarts {
			for _, r := range f.replicas {
				f.restart(t, l, r)
			}
		}
		l.stop(t, 2*restarts)
	})
	checkLogs(t, f.store)
}
