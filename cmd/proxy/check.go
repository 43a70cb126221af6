package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// checkTimeout limits each single check.
const checkTimeout = 30 * time.Second

func checkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "check",
		Short: "Test the configuration, the store and every key; exit 1 on any failure",
		Args:  noArguments,
	}
	path := configFlag(c)
	var o checkOptions
	c.Flags().StringVar(
		&o.bucket, "bucket", "",
		"`BUCKET` for testing the store: small objects are written and removed",
	)
	c.Flags().StringVar(&o.format, "format", "text", "`FORMAT`: text, or json (one object per line)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		o.path = *path
		return check(c.Context(), o, c.OutOrStdout(), c.ErrOrStderr())
	}
	return c
}

type checkOptions struct{ path, bucket, format string }

// check tests everything that serve needs, and prints one line for each
// check. A signal ends it: what is tested then has no line.
func check(ctx context.Context, o checkOptions, stdout, stderr io.Writer) error {
	c := &checker{out: stdout, stderr: stderr, json: o.format == "json"}
	if o.format != "text" && o.format != "json" {
		return usageError{fmt.Errorf("--format is %q, and must be text or json", o.format)}
	}
	file, err := readConfig(o.path)
	if err != nil {
		if c.json && !errors.As(err, &usageError{}) {
			c.line(checkConfiguration, err, "configuration")
			_ = c.end(ctx)
		}
		return err
	}
	cfg := file.Config
	c.line(checkConfiguration, nil, "configuration %s", file.path)

	for _, key := range cfg.Keys {
		c.run(ctx, checkKMSKey, "key "+key.Name+" ("+string(key.Provider)+")",
			func(ctx context.Context) (string, error) { return checkAnyKey(ctx, key, cfg.Keys) })
	}
	c.reuse(cfg)
	c.server(ctx, cfg)

	store, err := openStore(ctx, cfg, "", zap.NewNop(), metrics.New())
	if ctx.Err() != nil {
		return c.end(ctx)
	}
	if err != nil {
		c.line(checkCredentials, err, "store %s", cfg.Origin.Endpoint)
		return c.end(ctx)
	}
	if o.bucket != "" {
		c.line(checkRule, checkRules(cfg, o.bucket), "rule for bucket %s", o.bucket)
	}
	c.store(ctx, store, file.text, o.bucket)
	return c.end(ctx)
}

// run runs a test, and prints its result. After a signal it does neither: the
// result would only be that of the signal.
func (c *checker) run(ctx context.Context, check, what string, test func(context.Context) (string, error)) {
	limited, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if ctx.Err() != nil {
		return
	}
	detail, err := test(limited)
	if ctx.Err() != nil {
		return
	}

	if detail != "" {
		what += ": " + detail
	}
	c.line(check, err, "%s", what)
}

// checkRules returns an error if no rule is for objects of a bucket.
func checkRules(cfg *config.Config, bucket string) error {
	for _, r := range cfg.Encryption.Rules {
		if slices.ContainsFunc(r.Buckets, func(pattern string) bool { return glob.Match(pattern, bucket) }) {
			return nil
		}
	}
	return errors.New("no rule is for this bucket, so the proxy refuses all requests for its objects")
}

// checkAnyKey tries a key of the configuration.
func checkAnyKey(ctx context.Context, key config.Key, all []config.Key) (string, error) {
	switch {
	case key.IsTogether():
		return checkTogether(ctx, key, all)
	case key.IsTemplate():
		_, _, err := buildShared(ctx, key, nil)
		return key.Template() + ", not tried: the keys of tenants are opened when they are used", err
	default:
		return checkKey(ctx, key)
	}
}

// checkKey wraps and unwraps a data key with a KMS key.
func checkKey(ctx context.Context, key config.Key) (string, error) {
	wrapper, err := buildWrapper(ctx, key, nil)
	if err != nil {
		return "", err
	}

	wrapped, _, err := kms.RoundTrip(ctx, wrapper)
	if err != nil {
		return wrapper.KeyID(), err
	}
	detail, err := checkRecovery(ctx, key, wrapper)
	if err != nil {
		return wrapper.KeyID(), err
	}

	if azure, ok := wrapper.(*kms.Azure); ok {
		bindings, err := checkBindings(ctx, azure, kms.VersionOf(azure.KeyID(), wrapped))
		return azure.KeyID() + detail + bindings, err
	}

	alias, err := checkAlias(ctx, key, wrapper.KeyID())
	if alias != "" {
		detail += "; " + alias
	}
	return wrapper.KeyID() + detail, err
}

// checkBindings unwraps the bindings of an Azure RSA key, and reports
// problems with them. newest is the current version of the key.
func checkBindings(ctx context.Context, key *kms.Azure, newest string) (string, error) {
	versions := key.Bound()
	switch {
	case !key.IsRSA():
		return "", nil
	case len(versions) == 0:
		return "; anyone with the public key can forge objects: " +
			"add bindings (cmekproxy keys bind), or use A256KW on a Managed HSM", nil
	}

	if err := key.TryBindings(ctx); err != nil {
		return "", err
	}

	var detail strings.Builder
	fmt.Fprintf(&detail, "; %d bindings", len(versions))
	for i, version := range versions {
		if version != newest {
			fmt.Fprintf(&detail, "; binding %d is wrapped by version %s, not the newest: "+
				"before you disable that version, wrap the binding again "+
				"(cmekproxy keys bind --again %d)", i+1, version, i+1)
		}
	}

	return detail.String(), nil
}
