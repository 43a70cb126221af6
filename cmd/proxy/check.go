package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/storecheck"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
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
	bucket := c.Flags().String(
		"bucket",
		"",
		"`BUCKET` for testing the store: small objects are written and removed",
	)
	c.RunE = func(c *cobra.Command, _ []string) error { return check(c.Context(), *path, *bucket, c.OutOrStdout()) }
	return c
}

// check tests everything that serve needs, and prints one line for each
// check.
func check(ctx context.Context, path, bucket string, stdout io.Writer) error {
	file, err := readConfig(path)
	if err != nil {
		return err
	}
	cfg, c := file.Config, &checker{out: stdout}
	c.line(nil, "configuration %s", file.path)

	for _, key := range cfg.Keys {
		c.run(
			ctx,
			"key "+key.Name+" ("+string(key.Provider)+")",
			func(ctx context.Context) (string, error) {
				switch {
				case key.IsTogether():
					return checkTogether(ctx, key, cfg.Keys)
				case key.IsTemplate():
					_, _, err := buildShared(ctx, key, nil)
					return key.Template() + ", not tried: the keys of tenants are opened when they are used", err
				default:
					return checkKey(ctx, key)
				}
			},
		)
	}

	c.reuse(cfg)
	c.tenants(cfg)
	c.line(checkAudit(cfg.Audit), "audit log")
	c.certificate(cfg.TLS)
	for _, name := range shortSecrets(cfg.Clients) {
		fmt.Fprintf(
			stdout,
			"warn  client %s: secret_key has fewer than %d characters; choose a longer one\n",
			name,
			goodSecret,
		)
	}

	c.server(ctx, cfg)
	store, err := openStore(ctx, cfg, "", zap.NewNop(), metrics.New())
	if err != nil {
		return err
	}
	c.store(ctx, store, file.text, bucket)

	if c.failures > 0 {
		return fmt.Errorf("%d of %d checks failed", c.failures, c.total)
	}
	return nil
}

// checker prints results and counts them.
type checker struct {
	out             io.Writer
	total, failures int
}

func (c *checker) run(ctx context.Context, what string, test func(context.Context) (string, error)) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	detail, err := test(ctx)
	if detail != "" {
		what += ": " + detail
	}
	c.line(err, "%s", what)
}

func (c *checker) line(err error, format string, args ...any) {
	c.total++
	what := fmt.Sprintf(format, args...)
	if err != nil {
		c.failures++
		fmt.Fprintf(c.out, "FAIL  %s: %v\n", what, err)
		return
	}
	fmt.Fprintf(c.out, "ok    %s\n", what)
}

// tenants reads the file of each tenant.
func (c *checker) tenants(cfg *config.Config) {
	if cfg.TenantsDir == "" {
		return
	}
	state := tenant.Open(cfg.TenantsDir, tenantParser(cfg)).Next()
	for _, p := range state.Problems {
		c.line(p.Err, "tenant file %q", p.Path)
	}
	c.line(state.Err, "tenants_dir %s: %d tenants; their keys are not tried, as they are opened when they are used",
		cfg.TenantsDir, len(state.Tenants))
}

// reuse prints what limits the PUTs of rules without dek_reuse.
func (c *checker) reuse(cfg *config.Config) {
	local := make(map[string]bool)
	for _, key := range cfg.Keys {
		local[key.Name] = key.Provider == config.Local
	}

	var names []string
	for _, r := range cfg.Encryption.Rules {
		name := cmp.Or(r.Key, config.TenantKeys)
		if r.DEKReuse == (config.DEKReuse{}) && !local[name] && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(c.out, "note  no dek_reuse in a rule for %s: each PUT waits for a call to the KMS, "+
			"and for each key at most %d PUTs a second can start (kms.max_per_second)\n",
			strings.Join(names, ", "), cfg.KMS.MaxPerSecond)
	}
}

// server builds the server as serve does, and prints what is unusual about
// its keys.
func (c *checker) server(ctx context.Context, cfg *config.Config) {
	s, err := newServer(ctx, cfg, zap.NewNop(), "")
	if err != nil {
		c.line(err, "server")
		return
	}
	defer s.close()

	for _, pair := range s.keys.Twins() {
		fmt.Fprintf(c.out, "note  keys %s and %s are the same KMS key: objects under it are opened through %s\n",
			pair[0], pair[1], pair[0])
	}

	for _, name := range s.keys.Unread() {
		fmt.Fprintf(
			c.out,
			"note  key %s: no rule names it (key, allowed_keys, read_keys), so objects under it cannot be read\n",
			name,
		)
	}
}

// store tests what the store can do. Without a bucket, it tests the
// credentials only. text is the configuration.
func (c *checker) store(ctx context.Context, s *store, text []byte, bucket string) {
	probe := s.newProbe(bucket, "")
	c.run(ctx, "store "+s.settings.Endpoint+": credentials", probe.List)

	if bucket == "" {
		fmt.Fprintln(c.out, "skip  features of the store: give --bucket to test them")
		return
	}
	c.sweep(ctx, probe)
	dismiss, err := startCleaner(text, bucket, probe.ID())
	if err != nil {
		fmt.Fprintf(c.out, "warn  if this check is killed, its test objects stay until the next one: %v\n", err)
	} else {
		defer func() {
			if ctx.Err() == nil { // else the store may still be doing what was interrupted
				dismiss()
			}
		}()
	}
	c.run(ctx, "store: put, 2 KB of metadata", probe.Put)
	c.run(ctx, "store: ranges", probe.Ranges)
	c.capabilities(ctx, probe, s.settings)
	c.run(ctx, "store: delete", func(ctx context.Context) (string, error) { return "", probe.Clean(ctx) })
}

// sweep removes what a check or a proxy has left that was killed.
func (c *checker) sweep(ctx context.Context, probe *storecheck.Probe) {
	switch n, err := probe.Sweep(ctx); {
	case err != nil:
		fmt.Fprintf(c.out, "warn  looking for what an earlier test has left: %v\n", err)
	case n > 0:
		fmt.Fprintf(c.out, "note  removed %d objects and uploads that an earlier test had left\n", n)
	}
}

// capabilities finds out what the store can do, and compares it with the
// settings.
func (c *checker) capabilities(ctx context.Context, probe *storecheck.Probe, cfg config.Origin) {
	var found capability.Set
	c.run(ctx, "store: what it can do", func(ctx context.Context) (_ string, err error) {
		found, err = probe.Capabilities(ctx)
		return "", err
	})
	for one := range capability.All {
		fmt.Fprintf(c.out, "      %-22s %s\n", one, one.Text(found[one]))
	}

	used := fixedCapabilities(cfg).Over(found)
	c.line(checkTrailer(found, used, cfg), "store: checksum trailers, truncated bodies")
	c.line(checkPartCount(found, used), "store: part counts in ETags")
	c.run(ctx, "store: multipart uploads", func(ctx context.Context) (string, error) {
		return probe.Parts(ctx, used, cfg.UniformParts)
	})
	detail, err := storecheck.CompareKeys(found, cfg.Keys)
	if detail != "" {
		detail = ": " + detail
	}
	c.line(err, "store: keys%s", detail)
}

// checkTrailer returns an error if uploads would fail, or if a body that was
// cut short would be kept.
func checkTrailer(found, used capability.Set, cfg config.Origin) error {
	switch {
	case used[capability.Trailer] == capability.Yes && found[capability.Trailer] == capability.No:
		return errors.New("the store refuses checksum trailers, so all uploads would fail: " +
			"set origin.checksum_trailer to auto")
	case used[capability.Trailer] != capability.No || found[capability.CutBodies] != capability.No:
		return nil
	case found[capability.Trailer] == capability.Yes:
		return errors.New("the store keeps bodies that are cut short, " +
			"but discards them with a checksum trailer: set origin.checksum_trailer to auto")
	case cfg.TruncatedUploads == config.Accept:
		return nil
	default:
		return s3api.ErrKeepsTruncated
	}
}

// checkPartCount returns an error if sizes in listings would be wrong.
func checkPartCount(found, used capability.Set) error {
	if used[capability.PartCount] == capability.Yes && found[capability.PartCount] == capability.No {
		return errors.New("the store's ETags do not have the number of parts, so sizes in listings would be wrong: " +
			"set origin.etag_part_count to auto")
	}
	return nil
}

// certificate checks the certificate of the S3 port.
func (c *checker) certificate(cfg config.TLS) {
	server, err := buildTLS(cfg, zap.NewNop())
	if server == nil && err == nil {
		return
	}
	what := "certificate " + cfg.CertFile
	if err == nil {
		what += ", valid until " + server.Certificate().NotAfter.Format(time.RFC3339)
		err = server.Valid(time.Now())
	}
	c.line(err, "%s", what)
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
