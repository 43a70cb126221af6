// Package awscreds keeps AWS credentials that follow their source.
//
// The SDK reads the shared config and credentials files once, when it loads its
// configuration, and keys that stand in them never change afterwards. It also
// waits for a source that hangs for as long as the connection lives, and has
// all later callers wait for the same one. A Provider reads the files again
// when they change, and gives up on a source that hangs.
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
	// DefaultWait is well below the 60 s after which SDKs give up on a request.
	DefaultWait    = 10 * time.Second
	DefaultTimeout = 30 * time.Second
)

// retryInterval is the time between two attempts at a source that fails while
// the credentials of the one before it are used.
const retryInterval = time.Second

// ErrTimeout says that the source of the credentials does not answer. It is a
// context.DeadlineExceeded.
var ErrTimeout = fmt.Errorf("the source of the AWS credentials gives no answer: %w", context.DeadlineExceeded)

// Config configures a Provider.
type Config struct {
	// Load makes the provider of the credentials, such as the Credentials of
	// config.LoadDefaultConfig. It is called again after a change of a file and
	// after a timeout, and must not wait for the network. Required.
	Load func(ctx context.Context) (aws.CredentialsProvider, error)
	// Files are those that Load reads. Nil: SharedFiles.
	Files []string
	// Wait bounds one Retrieve. 0: DefaultWait.
	Wait time.Duration
	// Timeout bounds one attempt at the source, which goes on when a Retrieve
	// has given up, for the next one. 0: DefaultTimeout.
	Timeout time.Duration
	// Report, if not nil, is told of each later reading of the files: nil, or
	// why the old credentials stay in force.
	Report func(error)
}

// Provider is an aws.CredentialsProvider that needs no cache around it. It is
// safe for concurrent use.
type Provider struct {
	cfg     Config
	file    *livefile.File[*source]
	flights singleflight.Group
}

// source is a provider that Load has made, and what it last gave.
type source struct {
	provider atomic.Pointer[aws.CredentialsProvider]
	last     atomic.Pointer[aws.Credentials]
	old      *aws.Credentials // of the source before this one, or nil
	failed   atomic.Pointer[time.Time]
}

// fallback are the credentials of the source before this one, for as long as
// this one has given none: a file may be read when it is half written. It is
// nil if there are none that are good for now.
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

// New calls Load for the first time. The error is that of Load.
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

// SharedFiles are the files that the SDK reads when it loads its configuration:
// the shared config and credentials files that the environment names, or those
// in the home directory, and the bundle of authorities.
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

// CABundle is the file of authorities that AWS_CA_BUNDLE names, or "".
func CABundle() (string, error) {
	env, err := config.NewEnvConfig()
	if err != nil {
		return "", fmt.Errorf("reading the AWS settings of the environment: %w", err)
	}
	return env.CustomCABundle, nil
}

// Retrieve implements aws.CredentialsProvider. Credentials that are not about
// to expire are returned at once. For others it waits until ctx ends or the
// source has had its time; callers wait for one answer together.
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

	name := fmt.Sprintf("%p", s) // a source that was replaced holds nobody up
	select {
	case r := <-p.flights.DoChan(name, func() (any, error) { return p.askSource(s) }):
		creds, _ := r.Val.(aws.Credentials) // none with an error
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

// renew gives a source that hangs another provider.
func (p *Provider) renew(s *source) {
	// The SDK's own cache still waits for the source that hangs, and would have
	// the next attempt wait for it too.
	if provider, err := p.cfg.Load(context.Background()); err == nil && provider != nil {
		s.provider.Store(&provider)
	}
}
