// Package proxytest starts what tests of several packages need in front of or
// behind the proxy: a real store in a directory, and keys in files.
//
// There is no example: it is for tests, which show its use.
package proxytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/origin"
)

// What every Store takes.
const (
	AccessKey = "storekey"
	SecretKey = "storesecretstoresecret"
	Region    = "us-east-1"
)

// The directories of a store.
const (
	Buckets  = "buckets"
	Versions = "versions"
)

// Store is a store that runs in a process of its own.
type Store struct {
	Dir string // of the buckets: an object is a file
	URL string // at which it is served over plain HTTP

	root, socket string
	process      *exec.Cmd
	stdin        io.Closer
}

// StartStore starts a store that keeps versions in buckets that ask for them.
func StartStore() (*Store, error) {
	program, err := storeProgram()
	if err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp("", "proxytest-")
	if err != nil {
		return nil, err
	}
	s := &Store{Dir: filepath.Join(root, Buckets), root: root}
	err = errors.Join(os.Mkdir(s.Dir, 0o700), os.Mkdir(filepath.Join(root, Versions), 0o700))
	if err == nil {
		err = s.start(program)
	}
	// The go command of another package's tests may be writing the program.
	for range 200 {
		if !errors.Is(err, syscall.ETXTBSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
		err = s.start(program)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// storeProgram returns the path of the program of the store. The go command
// keeps it in its cache, and builds it again after a change.
var storeProgram = sync.OnceValues(func() (string, error) {
	var stderr strings.Builder
	const name = "github.com/cmekproxy/cmekproxy/internal/proxytest/store"
	find := exec.CommandContext(context.Background(), "go", "tool", "-n", name)
	find.Env = append(os.Environ(), "GOFLAGS=", "GOFIPS140=off") // one program for all ways to run the tests
	find.Stderr = &stderr
	path, err := find.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", find.Args, err, stderr.String())
	}
	return strings.TrimSpace(string(path)), nil
})

// start starts the process and reads its addresses.
func (s *Store) start(program string) (err error) {
	s.process = exec.CommandContext(context.Background(), program, s.root) //nolint:gosec // the go command has built it
	s.process.Dir, s.process.Stderr = s.root, os.Stderr
	stdout, err := s.process.StdoutPipe()
	if err != nil {
		return err
	}
	if s.stdin, err = s.process.StdinPipe(); err != nil {
		return err
	}
	if err := s.process.Start(); err != nil {
		return err
	}
	if _, err := fmt.Fscan(stdout, &s.URL, &s.socket); err != nil {
		return fmt.Errorf("the store failed to start: %w", err)
	}
	return nil
}

// ServeStore starts a store for the time of the test, and returns the URL at
// which it is served over plain HTTP.
func ServeStore(t testing.TB) (address string) {
	t.Helper()
	s, err := StartStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.URL
}

// Close stops the store and removes what it has.
func (s *Store) Close() error {
	if s.stdin != nil {
		_ = s.stdin.Close()
		_ = s.process.Wait()
	}
	return os.RemoveAll(s.root)
}

// Transport returns a transport to the store that waits for an answer until
// timeout.
func (s *Store) Transport(timeout time.Duration) *origin.Transport {
	return origin.NewTransport(origin.TransportConfig{
		ConnectTimeout: 5 * time.Second, ResponseTimeout: timeout, MaxConns: 64, UnixSocket: s.socket,
	})
}

// OriginConfig returns what a proxy needs to send requests to a store with
// these keys by a transport, whose address is to be in Endpoint if it is
// another.
func OriginConfig(transport http.RoundTripper) origin.Config {
	return origin.Config{
		Endpoint: &url.URL{Scheme: "http", Host: "store"}, Region: Region, PathStyle: true,
		Uploads: origin.Always(origin.Uploads{Trailer: true, PartChecksums: true}),
		Now:     time.Now, Transport: transport,
		Credentials: credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, ""),
	}
}

// NewLocalKey returns a key in a new file, and the path of the file.
func NewLocalKey(t testing.TB) (key *kms.Local, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "kms.key")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		t.Fatal(err)
	}
	key, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	return key, path
}
