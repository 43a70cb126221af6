package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Credentials of `cmekproxy dev`. They are public: dev listens on loopback
// only.
const (
	devAccessKey = "cmekproxydev"
	devSecretKey = "cmekproxydevsecret" //nolint:gosec // see above
	devRegion    = "us-east-1"
)

func devCommand() *cobra.Command {
	var o devOptions
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run an S3 endpoint with its own store and key, to try things out",
		Args:  noArguments,
		RunE:  func(c *cobra.Command, _ []string) error { return dev(c.Context(), o, c.OutOrStdout()) },
	}

	flags := c.Flags()
	flags.StringVar(&o.listen, "listen", "127.0.0.1:9000", "loopback `HOST:PORT` of the S3 endpoint")
	flags.StringVar(
		&o.adminListen,
		"admin-listen",
		"127.0.0.1:9001",
		"loopback `HOST:PORT` of /healthz, /readyz and /metrics",
	)

	flags.StringVar(&o.data, "data", "./cmekproxy-dev", "`DIRECTORY` for the ciphertext and the key; kept between runs")
	flags.StringVar(
		&o.recovery,
		"recovery-public-key",
		"",
		"`KEY` from cmekproxy recovery keygen, which opens the objects if the key is lost",
	)
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "log every request")
	return c
}

type devOptions struct {
	listen, adminListen, data, recovery string
	verbose                             bool
}

// dev runs the proxy with a store in the same process and its own key file.
func dev(ctx context.Context, o devOptions, stdout io.Writer) error {
	for _, addr := range []string{o.listen, o.adminListen} {
		if err := loopbackOnly(addr); err != nil {
			return usageError{err}
		}
	}

	dir, err := filepath.Abs(o.data)
	if err != nil {
		return err
	}

	keyFile := filepath.Join(dir, devKeyFile)
	if err := prepareDev(dir, keyFile); err != nil {
		return err
	}

	buckets := filepath.Join(dir, devBuckets)
	socket, stopStore, err := startDevStore(ctx, buckets)
	if err != nil {
		return fmt.Errorf("the embedded store: %w", err)
	}
	defer stopStore()

	level := "warn"
	if o.verbose {
		level = "info"
	}

	log, atomic, err := newLog(level)
	if err != nil {
		return err
	}

	cfg := devConfig(o.listen, o.adminListen, keyFile)
	cfg.Keys[0].RecoveryPublicKey = o.recovery
	s, err := newServer(ctx, cfg, log, socket)
	if err != nil {
		return err
	}
	s.level = &atomic
	defer s.close()
	return s.serve(ctx, func(addr net.Addr) { greet(stdout, addr.String(), o.adminListen, buckets, keyFile) })
}

// What is in the directory of dev.
const (
	devKeyFile = "kms.key"
	devBuckets = "buckets"
)

// openDevStore starts the store of dev, which may be running, for a command
// that reads from it.
func openDevStore(ctx context.Context, data string) (socket string, stop func(), err error) {
	dir, err := filepath.Abs(filepath.Join(data, devBuckets))
	if err == nil {
		_, err = os.Stat(dir) // the store would create it
	}
	if err != nil {
		return "", nil, err
	}
	return startDevStore(ctx, dir)
}

// loopbackOnly refuses addresses that other machines could reach: the README
// has the credentials.
func loopbackOnly(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf(
			"%s is not a loopback address; cmekproxy dev has public credentials and listens on loopback only",
			addr,
		)
	}
	return nil
}

func prepareDev(dir, keyFile string) error {
	if err := os.MkdirAll(filepath.Join(dir, devBuckets), 0o700); err != nil {
		return err
	}
	if err := kms.CreateLocalKeyFile(keyFile); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func devConfig(listen, adminListen, keyFile string) *config.Config {
	return &config.Config{
		Listen:      listen,
		AdminListen: adminListen,
		Origin: config.Origin{
			Endpoint:        "http://embedded-store",
			Region:          devRegion,
			AccessKey:       devAccessKey,
			SecretKey:       devSecretKey,
			PathStyle:       true,
			ChecksumTrailer: config.Yes,
			ETagPartCount:   config.Yes,
			Keys:            config.PathKeys,
			ConnectTimeout:  5 * time.Second,
			ResponseTimeout: 45 * time.Second,
			IdleTimeout:     30 * time.Second,
		},
		Clients: []config.Client{{
			Name: "dev", AccessKey: devAccessKey, SecretKey: devSecretKey,
			Allow: []config.Grant{
				{Buckets: []string{"*"}, Actions: []string{"read", "write", "delete", "list", "admin", "lock"}},
			},
		}},
		Keys: []config.Key{{Name: "dev", Provider: config.Local, KeyFile: keyFile}},
		Encryption: config.Encryption{
			Rules: []config.Rule{
				{Buckets: []string{"*"}, Key: "dev", PlaintextObjects: config.Deny, CustomerKeys: config.Deny},
			},
		},
		DEKCache: config.DEKCache{
			TTL:             30 * time.Second,
			MaxEntries:      10_000,
			RevocationProbe: 2 * time.Second,
			OutageWait:      10 * time.Second,
		},
		KMS: config.KMS{MaxConcurrent: 64, MaxPerSecond: 1000, PricePer10000: 0.03, Currency: "USD"},
		Limits: config.Limits{
			HeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
			MaxConcurrentRequests: 256, ShutdownGrace: 5 * time.Second,
		},
	}
}

func greet(w io.Writer, addr, admin, buckets, keyFile string) {
	fmt.Fprintf(w, `cmekproxy dev is an S3 endpoint at http://%[1]s
It encrypts with the key in %[4]s and keeps only ciphertext. Stop it with Ctrl-C; the data stays.

Paste into another terminal:

  export AWS_ACCESS_KEY_ID=%[5]s AWS_SECRET_ACCESS_KEY=%[6]s AWS_DEFAULT_REGION=%[7]s AWS_ENDPOINT_URL=http://%[1]s
  aws s3 mb s3://demo; echo "top secret" > hello.txt
  aws s3 cp hello.txt s3://demo/hello.txt
  aws s3 ls s3://demo
  aws s3 cp s3://demo/hello.txt -

See what the store has:

  xxd %[3]s/demo/hello.txt

What it does right now:      http://%[2]s/
Keys:                        http://%[2]s/admin/keys
Metrics:                     http://%[2]s/metrics
Cost of other cache times:   http://%[2]s/admin/ttl-advisor
`, addr, admin, buckets, keyFile, devAccessKey, devSecretKey, devRegion)
}
