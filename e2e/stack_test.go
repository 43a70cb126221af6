package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const region = "eu-central-1"

// domain is the name for virtual hosts. curl resolves all names below
// localhost.
const domain = "s3.localhost"

// credentials are generated for each run and never printed.
type credentials struct{ accessKey, secret string }

func newCredentials() credentials {
	return credentials{"AK" + rand.Text()[:18], rand.Text() + rand.Text()[:14]}
}

// endpoint is an address that clients connect to.
type endpoint struct {
	name string // http or https
	url  string
	ca   string // path of the certificate to trust; empty for http
	credentials
}

func (e endpoint) host() string { return e.url[strings.Index(e.url, "://")+3:] }

// stack is the system under test.
type stack struct {
	endpoints []endpoint // the proxies, or the store
	store     endpoint   // the store itself, without the proxies
	name      string     // prefix of the log names, if several stacks run
	dir       string     // where the store keeps everything
	versions  string     // where the store keeps old versions; empty for none
	iam       string     // where the store keeps its own users; empty for none
	logs      []string   // of the store and the proxies; each start of a replica has its own
	proxied   bool
}

// startStack starts all processes. With E2E_TARGET=store, clients connect to
// the store itself: failures there are not caused by the proxy.
func startStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{dir: storeDir(t), proxied: os.Getenv("E2E_TARGET") != "store"}
	cert, key := newCertificate(t)
	storeCredentials := newCredentials()
	s.store = s.startStore(t, "http", storeCredentials, "", "")
	if !s.proxied {
		s.endpoints = []endpoint{s.store}
		if storeKind() != "ceph" { // which has one address
			s.endpoints = append(s.endpoints, s.startStore(t, "https", storeCredentials, cert, key))
		}
		return s
	}

	env, keyConfig, _ := startKMS(t)
	client := newCredentials()
	env = append(env, "ORIGIN_ACCESS_KEY="+s.store.accessKey, "ORIGIN_SECRET_KEY="+s.store.secret,
		"APP_ACCESS_KEY="+client.accessKey, "APP_SECRET_KEY="+client.secret)
	// Two proxies use the same store. They share only their configuration.
	s.endpoints = []endpoint{
		s.startProxy(t, "http", client, env, keyConfig, "", ""),
		s.startProxy(t, "https", client, env, keyConfig, cert, key),
	}
	return s
}

// storeDir returns a directory on a file system with extended attributes. A
// temporary directory in memory may not have them.
func storeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv("E2E_CACHE"), "store-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startKMS starts a KMS. It returns what a proxy needs to use it: the
// environment, the entries of two keys for the configuration, and the URL.
func startKMS(t *testing.T) (env []string, keyConfig, url string) {
	t.Helper()
	p := start(t, "kms", environment(), tool(t, "kmsd"), "-create-key", "2", "-region", region)
	var ready struct {
		Endpoint string
		Keys     []string
	}
	if err := json.Unmarshal([]byte(p.firstLine(t)), &ready); err != nil || len(ready.Keys) != 2 {
		t.Fatalf("kmsd: %v, %v", ready, err)
	}
	env = environment("AWS_ACCESS_KEY_ID=AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY=example", "AWS_EC2_METADATA_DISABLED=true")
	const entry = "{name: %s, provider: aws-kms, key_id: %q, endpoint: %q}"
	keyConfig = fmt.Sprintf(entry+", "+entry, "default", ready.Keys[0], ready.Endpoint, "other", ready.Keys[1], ready.Endpoint)
	return env, keyConfig, ready.Endpoint
}

func (s *stack) startProxy(t *testing.T, scheme string, c credentials, env []string, keyConfig, cert, key string) endpoint {
	t.Helper()
	address, admin := freeAddress(t), freeAddress(t)
	s.serve(t, scheme, env, s.writeConfig(t, scheme, address, admin, keyConfig, cert, key), admin)
	return endpoint{name: scheme, url: scheme + "://" + address, ca: cert, credentials: c}
}

// serve starts a proxy with a configuration.
func (s *stack) serve(t *testing.T, name string, env []string, config, admin string) *process {
	t.Helper()
	p := start(t, s.name+"proxy-"+name, env, tool(t, "cmekproxy"), "serve", "--config", config)
	s.logs = append(s.logs, p.log)
	p.waitFor(t, "http://"+admin+"/readyz")
	return p
}

// writeConfig writes the configuration of a proxy and returns its path.
func (s *stack) writeConfig(t *testing.T, name, address, admin, keyConfig, cert, key string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".yaml")
	text := fmt.Sprintf(`listen: %q
admin_listen: %q
domain: %q
tls: {cert_file: %q, key_file: %q, ends_on_this_machine: true}
origin:
  endpoint: %q
  region: %s
  access_key: ${ORIGIN_ACCESS_KEY}
  secret_key: ${ORIGIN_SECRET_KEY}
clients:
  - name: app
    access_key: ${APP_ACCESS_KEY}
    secret_key: ${APP_SECRET_KEY}
    allow:
      - {buckets: ["*"], actions: [read, write, delete, list, admin, lock, store_admin]}
limits: {shutdown_delay: 0s}
keys: [%s]
encryption:
  customer_keys: allow
  rules:
    - {buckets: ["*"], key: default, allowed_keys: ["*"]}
`, address, admin, domain, cert, key, s.store.url, region, keyConfig)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// waitForPort waits until a process listens at the address.
func (p *process) waitForPort(t *testing.T, address string) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case <-p.done:
			t.Fatalf("%s has ended", p.name)
		default:
		}
		if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			_ = conn.Close()
			return
		}
	}
	t.Fatalf("%s does not listen", p.name)
}

// tool returns the path of a program that run.sh built.
func tool(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("E2E_BIN")
	if dir == "" {
		t.Skip("E2E_BIN is not set: these tests are started by run.sh")
	}
	return filepath.Join(dir, name)
}

// newCertificate makes a self-signed certificate for 127.0.0.1. It returns
// the paths of the certificate and its key.
func newCertificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "cmekproxy end-to-end tests " + rand.Text()}, // OpenSSL looks for it
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:              []string{"localhost"},
	}

	certDER, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}

	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: certDER},
		key:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
