// Package awscreds provides AWS credentials that are reloaded when their
// source changes.
//
// The SDK reads the shared config and credentials files only once, so
// static keys in them never change afterwards. It also waits for a hanging
// source as long as the connection lives, and all later callers wait with
// it. A Provider reloads the files when they change, and gives up on a
// source that hangs.
//
// There is no example: it needs a source of AWS credentials.
package awscreds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"golang.org/x/sync/singleflight"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// Defaults of Config.
const (
	// DefaultWait is well below the 60 s after which SDKs abandon a
	// request.
	DefaultWait    = 10 * time.Second
	DefaultTimeout = 30 * time.Second
)

// retryInterval is the time between attempts at a failing source, while the
// credentials of the previous source are used.
const retryInterval = time.Second

// ErrTimeout is returned if the source of the credentials does not answer.
// It matches context.DeadlineExceeded.
var ErrTimeout = fmt.Errorf("the source of the AWS credentials does not answer: %w", context.DeadlineExceeded)

// Config configures a Provider.
type Config struct {
	// Load creates the provider of the credentials, for example the
	// Credentials of config.LoadDefaultConfig. It is called again after a
	// file has changed and after a timeout. It must not wait for the
	// network. Required.
	Load func(ctx context.Context) (aws.CredentialsProvider, error)
	// Files are the files that Load reads. Nil means SharedFiles.
	Files []string
	// Wait limits one Retrieve. 0 means DefaultWait.
	Wait time.Duration
	// Timeout limits one attempt at the source. The attempt may continue
	// after a Retrieve has given up, for the next Retrieve. 0 means
	// DefaultTimeout.
	Timeout time.Duration
	// Report is called after each reload of the files. If the error is not
	// nil, the old credentials remain in use. It may be nil.
	Report func(error)
}

// Provider is an aws.CredentialsProvider. It includes a cache, and is safe
// for concurrent use.
type Provider struct {
	cfg     Config
	file    *livefile.File[*source]
	flights singleflight.Group
}

// source is a provider created by Load, with the credentials it last
// returned.
type source struct {
	provider atomic.Pointer[aws.CredentialsProvider]
	last     atomic.Pointer[aws.Credentials]
	old      *aws.Credentials // credentials of the previous source, or nil
	failed   atomic.Pointer[time.Time]
}

// fallback returns the credentials of the previous source if this one has
// not returned any yet, because the file may have been read while it was
// being written. It returns nil if they have expired.
func (s *source) fallback() *aws.Credentials {
	if s.old == nil || s.last.Load() != nil || s.old.Expired() {
		return nil
	}
	return s.old
}

func (s *source) hasJustFailed() bool {
	failed := s.failed.Load()
	return failed != nil && time.Since(*failed) < retryInterval
}

// New returns a Provider. It calls Load and returns its error.
func New(ctx context.Context, cfg Config) (*Provider, error) {
	if cfg.Wait <= 0 {
		cfg.Wait = DefaultWait
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}

	if cfg.Files == nil {
		var err error
		if cfg.Files, err = SharedFiles(); err != nil {
			return nil, err
		}
	}

	p := &Provider{cfg: cfg}
	later := context.WithoutCancel(ctx)
	var before *source

	load := func() (*source, error) {
		provider, err := cfg.Load(later)
		if err != nil {
			return nil, err
		}
		if provider == nil {
			return nil, errors.New("there is no source of AWS credentials")
		}

		s := new(source)
		s.provider.Store(&provider)

		if before != nil {
			s.old = cmp.Or(before.last.Load(), before.old)
		}
		before = s
		return s, nil
	}

	var err error
	p.file, err = livefile.Open(livefile.Config[*source]{Paths: cfg.Files, Load: load, Report: cfg.Report})
	if err != nil {
		return nil, err
	}

	return p, nil
}

// SharedFiles returns the files that the SDK reads for its configuration:
// the shared config and credentials files, and the CA bundle.
func SharedFiles() ([]string, error) {
	env, err := config.NewEnvConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the AWS settings of the environment: %w", err)
	}

	files := []string{
		cmp.Or(env.SharedConfigFile, config.DefaultSharedConfigFilename()),
		cmp.Or(env.SharedCredentialsFile, config.DefaultSharedCredentialsFilename()),
	}

	if env.CustomCABundle != "" {
		files = append(files, env.CustomCABundle)
	}
	return files, nil
}

// CABundle returns the file in AWS_CA_BUNDLE, or "".
func CABundle() (string, error) {
	env, err := config.NewEnvConfig()
	if err != nil {
		return "", fmt.Errorf("reading the AWS settings of the environment: %w", err)
	}
	return env.CustomCABundle, nil
}

// Retrieve implements aws.CredentialsProvider. It returns cached
// credentials unless they are about to expire. Otherwise it waits for the
// source until ctx ends or Config.Wait has passed. Concurrent callers share
// one request.
func (p *Provider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	s := p.file.Get()
	if last := s.last.Load(); last != nil && !last.Expired() {
		return *last, nil
	}
	if old := s.fallback(); old != nil && s.hasJustFailed() {
		return *old, nil
	}

	timer := time.NewTimer(p.cfg.Wait)
	defer timer.Stop()

	name := fmt.Sprintf("%p", s) // a replaced source delays no caller
	select {
	case r := <-p.flights.DoChan(name, func() (any, error) { return p.askSource(s) }):
		creds, _ := r.Val.(aws.Credentials) // zero if there is an error
		return creds, r.Err
	case <-timer.C:
		return aws.Credentials{}, ErrTimeout
	case <-ctx.Done():
		return aws.Credentials{}, ctx.Err()
	}
}

func (p *Provider) askSource(s *source) (aws.Credentials, error) {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Timeout)
	defer cancel()

	creds, err := (*s.provider.Load()).Retrieve(ctx)
	if err == nil {
		s.last.Store(&creds)
		return creds, nil
	}

	s.failed.Store(new(time.Now()))
	if ctx.Err() != nil {
		p.renew(s)
		err = ErrTimeout
	}
	if old := s.fallback(); old != nil {
		return *old, nil
	}

	return aws.Credentials{}, err
}

// renew replaces the provider of a source that hangs.
func (p *Provider) renew(s *source) {
	// The SDK's cache is still waiting for the source, and further attempts
	// would wait with it.
	if provider, err := p.cfg.Load(context.Background()); err == nil && provider != nil {
		s.provider.Store(&provider)
	}
}
