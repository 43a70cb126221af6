package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/awscreds"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/storecheck"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// store is the store behind the proxy, and what is known about it.
type store struct {
	origin       *origin.Origin
	login        *storeLogin
	capabilities *capability.Finder

	settings config.Origin
	// For the probe: the same store, with and without checksum trailers.
	plain, trailer inplace.Sender
}

// openStore prepares requests to the store. unixSocket, if not empty, is used
// instead of the host of its endpoint.
func openStore(
	ctx context.Context,
	cfg *config.Config,
	unixSocket string,
	log *zap.Logger,
	metrics *metrics.Metrics,
) (*store, error) {
	first, err := originCredentials(ctx, cfg.Origin, log)
	if err != nil {
		return nil, err
	}
	credentials := &storeLogin{}
	credentials.current.Store(&first)

	endpoint, err := url.Parse(cfg.Origin.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("origin.endpoint: %w", err)
	}

	transport, err := buildTransport(cfg, unixSocket, log)
	if err != nil {
		return nil, err
	}

	traced := tracedTransport(transport, cfg.Tracing)
	retrier := origin.NewRetrier(traced, origin.RetryConfig{Observe: s3api.RecordRetry})
	s := &store{settings: cfg.Origin, login: credentials}
	open := func(uploads func(context.Context, string) (origin.Uploads, error)) *origin.Origin {
		return origin.New(origin.Config{
			Endpoint:    endpoint,
			Region:      cfg.Origin.Region,
			Credentials: credentials,
			PathStyle:   cfg.Origin.PathStyle,
			SSE:         origin.SSE(cfg.Origin.SSE),
			Uploads:     uploads,
			Now:         time.Now,
			Transport:   retrier,
		})
	}

	s.origin = open(s.uploads)
	s.plain = inplace.NewSender(open(origin.Always(origin.Uploads{})), s3api.CheckAnswer, refusalOfProbe)
	s.trailer = inplace.NewSender(
		open(origin.Always(origin.Uploads{Trailer: true, PartChecksums: true})),
		s3api.CheckAnswer,
		refusalOfProbe,
	)
	s.capabilities = capability.New(capability.Config{
		Probe: func(ctx context.Context, bucket string) (capability.Set, error) {
			return s.findCapabilities(ctx, bucket, "")
		},
		Fixed: fixedCapabilities(cfg.Origin),
		Report: func(bucket string, found capability.Set, err error) {
			reportCapabilities(log, metrics, bucket, found, err)
		},
		TTL: capabilitiesTTL, Retry: probeAgain, Timeout: probeTimeout, Now: time.Now,
	})
	return s, nil
}

// Times of the probe that finds out what the store can do.
const (
	capabilitiesTTL = 24 * time.Hour
	probeTimeout    = 20 * time.Second
)

// probeAgain returns when a probe that failed is repeated: soon if the store
// could not answer, because uploads to some stores fail until then.
func probeAgain(err error) time.Duration {
	if status := stored.StatusOf(err); status == 0 || status >= 500 {
		return 2 * time.Second
	}
	return 10 * time.Minute // somebody has to change a right
}

// refusalOfProbe accepts refusals that have an S3 error code as the store's
// decision: unlike s3api.CheckRefusal, also those about checksums and framing,
// which the probe wants to know.
func refusalOfProbe(r *http.Request, status int, code string, body []byte) error {
	if code != "" {
		return nil
	}
	return s3api.CheckRefusal(r, status, code, body)
}

// newProbe returns a probe of the store whose objects have a prefix.
func (s *store) newProbe(bucket, prefix string) *storecheck.Probe {
	return storecheck.New(
		storecheck.Config{Send: s.plain, SendTrailer: s.trailer, Bucket: bucket, Prefix: prefix},
	)
}

// findCapabilities asks the store what it can do, with small objects that have a
// prefix. It removes them, and what earlier probes have left.
func (s *store) findCapabilities(ctx context.Context, bucket, prefix string) (capability.Set, error) {
	probe := s.newProbe(bucket, prefix)
	set, err := probe.Capabilities(ctx)
	if removal := probe.Clean(ctx); err == nil {
		err = removal
	}
	if err == nil {
		_, _ = probe.Sweep(ctx) // the next probe tries again
	}
	return set, err
}

// fixedCapabilities returns what the settings say about the store.
func fixedCapabilities(cfg config.Origin) (fixed capability.Set) {
	fixed[capability.Trailer] = answerOf(cfg.ChecksumTrailer)
	fixed[capability.PartCount] = answerOf(cfg.ETagPartCount)
	switch cfg.Keys {
	case config.LiteralKeys:
		fixed[capability.LiteralBackslash] = capability.Yes
		fixed[capability.LiteralSlashes] = capability.Yes
		fixed[capability.LiteralLeadingSlash] = capability.Yes
		fixed[capability.LiteralDots] = capability.Yes
	case config.PathKeys: // some of these stores keep a backslash
		fixed[capability.LiteralSlashes] = capability.No
		fixed[capability.LiteralLeadingSlash] = capability.No
		fixed[capability.LiteralDots] = capability.No
	}
	return fixed
}

func answerOf(setting string) capability.Answer {
	switch setting {
	case config.Yes:
		return capability.Yes
	case config.No:
		return capability.No
	default:
		return capability.Unknown
	}
}

// uploads decides how bodies are sent to a bucket. What is unknown is taken
// for Amazon S3, where a body is protected by its trailer.
func (s *store) uploads(ctx context.Context, bucket string) (origin.Uploads, error) {
	var needed []capability.Capability
	switch s.settings.ChecksumTrailer {
	case config.Auto:
		needed = append(needed, capability.Trailer, capability.PartChecksums, capability.CutBodies)
	case config.No:
		needed = append(needed, capability.CutBodies)
	}

	set := s.capabilities.Find(ctx, bucket, needed...)
	if set[capability.Trailer] != capability.No {
		return origin.Uploads{Trailer: true, PartChecksums: set[capability.PartChecksums] != capability.No}, nil
	}
	if set[capability.CutBodies] == capability.No && s.settings.TruncatedUploads != config.Accept {
		return origin.Uploads{}, s3api.ErrKeepsTruncated
	}
	return origin.Uploads{}, nil
}

// reportCapabilities logs what a probe has found, and exports it.
func reportCapabilities(log *zap.Logger, m *metrics.Metrics, bucket string, found capability.Set, err error) {
	fields := []zap.Field{zap.String("bucket", bucket)}
	for c := range capability.All {
		fields = append(fields, zap.String(c.String(), found[c].String()))
		if found[c] != capability.Unknown {
			m.StoreCapability(c.String(), found[c] == capability.Yes)
		}
	}

	if err != nil {
		log.Warn(
			"could not find out everything about the store; what is unknown is taken for what Amazon S3 does, "+
				"and sizes in listings may cost requests: see docs/stores.md",
			append(fields, zap.Error(err))...,
		)
		return
	}
	log.Info("found out what the store can do", fields...)
}

func buildTransport(cfg *config.Config, unixSocket string, log *zap.Logger) (*origin.Transport, error) {
	out := origin.TransportConfig{
		ConnectTimeout:  cfg.Origin.ConnectTimeout,
		ResponseTimeout: cfg.Origin.ResponseTimeout,
		IdleTimeout:     cfg.Origin.IdleTimeout,
		MaxConns:        2 * cfg.Limits.MaxConcurrentRequests, // slow requests have as many
		UnixSocket:      unixSocket,
	}

	if cfg.Origin.CAFile != "" && strings.HasPrefix(cfg.Origin.Endpoint, "https:") {
		pool, err := pemfile.OpenPool(cfg.Origin.CAFile, func(err error) {
			if err != nil {
				log.Error("reading origin.ca_file failed; keeping the authorities read before", zap.Error(err))
				return
			}
			log.Info("origin.ca_file read again")
		})
		if err != nil {
			return nil, fmt.Errorf("origin.ca_file, or AWS_CA_BUNDLE: %w", err)
		}

		out.Authorities = pool
	}

	return origin.NewTransport(out), nil
}

func originCredentials(ctx context.Context, cfg config.Origin, log *zap.Logger) (aws.CredentialsProvider, error) {
	if cfg.AccessKey != "" {
		return staticLogin{
			AccessKeyID: cfg.AccessKey, SecretAccessKey: cfg.SecretKey.Reveal(), Source: "config",
		}, nil
	}

	creds, err := awscreds.New(ctx, awscreds.Config{
		Load: func(ctx context.Context) (aws.CredentialsProvider, error) {
			chain, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(cfg.Region))
			return chain.Credentials, err
		},
		Report: func(err error) {
			if err != nil {
				log.Error(
					"reading the store's AWS credentials failed; keeping the ones read before",
					zap.Error(err),
				)
				return
			}

			log.Info("the store's AWS credentials read again")
		},
	})
	if err != nil {
		return nil, fmt.Errorf("the store's credentials from the AWS SDK's default chain: %w", err)
	}

	return creds, nil
}

// staticLogin is the credentials for the store in the configuration.
type staticLogin aws.Credentials

// Retrieve implements aws.CredentialsProvider.
func (l staticLogin) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials(l), nil
}

// storeLogin gives the credentials for the store. A reload can change where they
// are from.
type storeLogin struct {
	current atomic.Pointer[aws.CredentialsProvider]
}

// Retrieve implements aws.CredentialsProvider.
func (l *storeLogin) Retrieve(ctx context.Context) (aws.Credentials, error) {
	return (*l.current.Load()).Retrieve(ctx)
}
