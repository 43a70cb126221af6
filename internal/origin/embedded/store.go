// Package embedded runs a real S3 store in this process, for `cmekproxy
// dev` and for the store of the tests (internal/proxytest/store). It is versitygw with the posix backend, which stores
// objects as files in a directory.
//
// There is no example: it starts a store. cmekproxy dev shows its use.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

// Config configures the store.
type Config struct {
	Dir       string // must exist
	AccessKey string
	SecretKey string
	Region    string
	// Versions is a directory for old versions of objects, which must
	// exist. If it is "", buckets have no versioning.
	Versions string
}

// Start runs the store on a Unix socket that only this user can open. A
// process can run only one store, because Start changes the working
// directory to Dir. stop stops the store and waits for it.
func Start(ctx context.Context, cfg Config) (socket string, stop func(), err error) {
	store, err := newBackend(cfg.Dir, cfg.Versions)
	if err != nil {
		return "", nil, err
	}

	private, err := os.MkdirTemp("", "cmekproxy-") // short, because the path of a Unix socket has at most 104 bytes
	if err != nil {
		return "", nil, err
	}

	socket = filepath.Join(private, "s3")
	running, cancel := context.WithCancel(context.WithoutCancel(ctx)) // must outlive the draining of the proxy
	ended := make(chan error, 1)
	go func() {
		ended <- embedgw.RunVersityGW(running, store, &embedgw.Config{
			RootUserAccess: cfg.AccessKey, RootUserSecret: cfg.SecretKey, Region: cfg.Region,
			IAMService: auth.NewIAMServiceSingle(auth.Account{
				Access: cfg.AccessKey, Secret: cfg.SecretKey, Role: auth.RoleAdmin,
			}),
			Ports: []string{socket}, SocketPerm: "0600", Quiet: true, KeepAlive: true,
			MaxConnections: 4096, MaxRequests: 2048, MultipartMaxParts: 10_000,
		})
	}()

	stop = func() {
		cancel()
		<-ended //nolint:errcheck // it was told to stop
		_ = os.RemoveAll(private)
	}

	if err := waitFor(ctx, socket, ended); err != nil {
		cancel()
		return "", nil, errors.Join(err, os.RemoveAll(private))
	}

	return socket, stop, nil
}

// maxCopy is the maximum size of objects for CopyObject in bytes, as in S3.
const maxCopy = 5 << 30

// newBackend returns a backend that keeps metadata in extended attributes.
// If the file system has none, metadata is kept in files next to the
// buckets.
func newBackend(dir, versions string) (backend.Backend, error) {
	opts := posix.PosixOpts{NewDirPerm: 0o700, VersioningDir: versions, CopyObjectThreshold: maxCopy}
	if (meta.XattrMeta{}).Test(dir) == nil {
		return posix.New(dir, meta.XattrMeta{}, opts)
	}

	beside := filepath.Join(filepath.Dir(dir), "metadata")
	if err := os.MkdirAll(beside, 0o700); err != nil {
		return nil, err
	}

	files, err := meta.NewSideCar(beside)
	if err != nil {
		return nil, fmt.Errorf("%s has no extended attributes, and metadata cannot be kept in files: %w", dir, err)
	}

	opts.SideCarDir = beside
	return posix.New(dir, files, opts)
}

func waitFor(ctx context.Context, socket string, ended chan error) error {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}

		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("the store failed to start: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
