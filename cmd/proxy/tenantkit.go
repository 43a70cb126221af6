package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
	"github.com/cmekproxy/cmekproxy/internal/tenantkit"
)

func tenantCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "tenant",
		Short: "A customer's own key: what his administrator applies, and a proof of what the proxy may do",
		Args:  noCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(tenantInitCommand(), tenantCheckCommand())
	return c
}

func tenantInitCommand() *cobra.Command {
	providers := strings.Join(tenantkit.Providers(), "|")
	c := &cobra.Command{
		Use:   "init " + providers,
		Short: "Print what the customer's administrator applies: a key, and the least permissions for the proxy",
		Long: "Prints what the customer's administrator applies on his side. The entry for the proxy's " +
			"configuration, and what to do, go to standard error.",
		Args: oneArgument("provider (" + providers + ")"),
	}

	order := tenantkit.Order{Values: make(map[string]string)}
	given := make(map[string]*string)
	for _, v := range tenantkit.Values() {
		usage := v.Usage
		if v.Providers != nil {
			usage = strings.Join(v.Providers, ", ") + ": " + usage
		}
		if v.Default != "" {
			usage += " (default: " + v.Default + ")"
		}
		given[v.Name] = c.Flags().String(v.Name, "", usage)
	}

	var formats []string
	for _, provider := range tenantkit.Providers() {
		formats = append(formats, provider+": "+strings.Join(tenantkit.Formats(provider), " or "))
	}
	c.Flags().StringVar(&order.Format, "format", "", "`FORMAT` (default: the first). "+strings.Join(formats, "; "))
	c.Flags().BoolVar(&order.WholeBucket, "whole-bucket", false, "all objects in the bucket are the tenant's")
	c.Flags().BoolVar(&order.BucketKeys, "bucket-keys", false, "aws: objects are written with dek_reuse")
	c.Flags().BoolVar(&order.Inspect, "inspect", false,
		"also permit reading who may use the key, which tenant check then proves")
	output := c.Flags().StringP("output", "o", "", "`FILE`, which must not exist (default: standard output)")

	c.RunE = func(c *cobra.Command, args []string) error {
		order.Provider = args[0]
		for name, value := range given {
			order.Values[name] = *value
		}
		return tenantInit(order, *output, c.OutOrStdout(), c.ErrOrStderr())
	}
	return c
}

// tenantInit prints a kit.
func tenantInit(order tenantkit.Order, output string, stdout, stderr io.Writer) error {
	kit, err := tenantkit.Init(order)
	if err != nil {
		return usageError{err}
	}

	if output == "" {
		if _, err := io.WriteString(stdout, kit.Artifact); err != nil {
			return err
		}
	} else if err := atomicfile.Create(output, []byte(kit.Artifact)); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s\n%s", kit.Steps, kit.Entry)
	return nil
}

func tenantCheckCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "check NAME",
		Short: "Prove what the proxy may do with a key, and what not; exit 1 on any failure",
		Long: "Proves what the proxy may do with a key, and what not. NAME is that of a key in the configuration, or " +
			"TEMPLATE:VALUE for the key of a tenant. It changes nothing, and touches no object.",
		Args: oneArgument("name of a key"),
	}

	path := configFlag(c)
	var o tenantCheckOptions
	c.Flags().StringVar(&o.bucket, "bucket", "", "`BUCKET` of the tenant (default: that of the key's rule)")
	c.Flags().StringVar(&o.prefix, "prefix", "", "`PREFIX` of the tenant's objects (default: that of the key's rule)")
	c.Flags().StringVar(&o.format, "format", "text", "`FORMAT`: text or json")
	c.Flags().StringVar(&o.page, "page", "", "`FILE` for an HTML page that the key's owner can keep")
	c.RunE = func(c *cobra.Command, args []string) error {
		o.name = args[0]
		return tenantCheck(c.Context(), *path, o, c.OutOrStdout())
	}
	return c
}

type tenantCheckOptions struct{ name, bucket, prefix, format, page string }

// tenantCheckTimeout limits the whole check. It has about twenty calls.
const tenantCheckTimeout = 2 * time.Minute

// tenantCheck prints the report of a key.
func tenantCheck(ctx context.Context, path string, o tenantCheckOptions, stdout io.Writer) error {
	if o.format != "text" && o.format != "json" {
		return usageError{fmt.Errorf("--format is %q, and must be text or json", o.format)}
	}
	cfg, err := readOffline(path)
	if err != nil {
		return err
	}
	key, err := findNamedKey(cfg, o)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, tenantCheckTimeout)
	defer cancel()
	wrapper, err := key.open(ctx)
	if err != nil {
		return fmt.Errorf("opening the key %s: %w", key.Name, err)
	}
	if closer, ok := wrapper.(io.Closer); ok {
		defer closer.Close()
	}

	report := tenantkit.Check(ctx, tenantkit.Subject{
		Tool: "cmekproxy " + versionString(), Name: key.Name, Provider: string(key.Provider), Wrapper: wrapper,
		Bucket: key.bucket, Prefix: key.prefix, BucketKeys: key.bucketKeys, RoleARN: key.RoleARN, Address: key.Address,
		TTL: cfg.DEKCache.TTL, Probe: cfg.DEKCache.RevocationProbe,
		Timeout: cmp.Or(key.Timeout, keyring.DefaultProbeTimeout), Now: time.Now,
	})

	if o.page != "" {
		var page bytes.Buffer
		if err := report.WritePage(&page); err != nil {
			return err
		}
		if err := atomicfile.Replace(o.page, page.Bytes(), nil); err != nil {
			return fmt.Errorf("--page: %w", err)
		}
	}
	if err := writeTenantReport(report, o.format, stdout); err != nil {
		return err
	}
	if report.Failed > 0 {
		return fmt.Errorf("%d of %d checks failed", report.Failed, len(report.Rows))
	}
	return nil
}

func writeTenantReport(report *tenantkit.Report, format string, stdout io.Writer) error {
	if format == "text" {
		return report.WriteText(stdout)
	}
	text, _, err := report.JSON()
	if err == nil {
		_, err = stdout.Write(text)
	}
	return err
}

// namedKey is a key of the configuration, or that of a tenant, with objects for
// which it is used.
type namedKey struct {
	config.Key
	family         config.Key // the entry of the configuration
	bucket, prefix string
	bucketKeys     bool
}

// open opens the key. Each call makes one attempt.
func (k *namedKey) open(ctx context.Context) (kms.Wrapper, error) {
	if !k.family.IsTemplate() {
		return buildWrapper(ctx, k.Key, nil)
	}
	open, _, err := buildShared(ctx, k.family, nil)
	if err != nil {
		return nil, err
	}
	id := k.KeyID
	if k.Provider == config.Local {
		id = k.KeyFile
	}
	return open(ctx, id)
}

// findNamedKey finds the key with a name: that of a key in the configuration,
// TEMPLATE:VALUES for the key of a tenant, or the name of a tenant in
// tenants_dir. It is the one place that knows where keys can come from.
func findNamedKey(cfg *config.Config, o tenantCheckOptions) (*namedKey, error) {
	family, values, isTenant := strings.Cut(o.name, ":")
	var key *namedKey
	for _, k := range cfg.Keys {
		if k.Name == o.name || isTenant && k.Name == family && k.IsTemplate() {
			key = &namedKey{Key: k, family: k}
			break
		}
	}

	if key == nil {
		if key, err := findTenantFile(cfg, o); key != nil || err != nil {
			return key, err
		}
	}

	switch {
	case key == nil:
		return nil, usageError{fmt.Errorf("there is no key and no tenant with the name %q", o.name)}
	case key.IsTogether():
		return nil, usageError{fmt.Errorf("%s consists of other keys: check each of %s",
			o.name, strings.Join(key.Members, ", "))}
	case key.family.IsTemplate() && key.Name == o.name:
		return nil, usageError{fmt.Errorf("%s is a template: name a tenant, as in %s:acme", o.name, o.name)}
	}

	key.addObjects(cfg.Encryption.Rules, o)
	if key.family.IsTemplate() {
		if err := key.addTenant(values, o); err != nil {
			return nil, usageError{err}
		}
	}
	if key.bucket == "" {
		return nil, usageError{errors.New("the rules do not name the tenant's bucket: give --bucket")}
	}
	return key, nil
}

// findTenantFile finds the key of a tenant in tenants_dir. It returns nil if
// there is none.
func findTenantFile(cfg *config.Config, o tenantCheckOptions) (*namedKey, error) {
	if cfg.TenantsDir == "" {
		return nil, nil //nolint:nilnil // no directory, so no key
	}
	state := tenant.Open(cfg.TenantsDir, tenantParser(cfg)).Next()
	if state.Err != nil {
		return nil, state.Err
	}
	for _, p := range state.Problems {
		if p.Tenant == o.name {
			return nil, fmt.Errorf("%s: %w", p.Path, p.Err)
		}
	}
	t := state.Tenants[o.name]
	if t == nil {
		return nil, nil //nolint:nilnil // no such tenant
	}

	key := &namedKey{Key: t.Key, family: t.Key, bucket: o.bucket, prefix: o.prefix}
	key.bucket = cmp.Or(key.bucket, t.Objects[0].Buckets[0])
	if key.prefix == "" && len(t.Objects[0].Prefixes) > 0 {
		key.prefix = t.Objects[0].Prefixes[0]
	}
	for _, r := range cfg.Encryption.Rules {
		if r.Tenants {
			key.bucketKeys = key.bucketKeys || r.DEKReuse != (config.DEKReuse{})
		}
	}
	return key, nil
}

// addObjects takes bucket and prefix from the options, or from the first rule
// with the key.
func (k *namedKey) addObjects(rules []config.Rule, o tenantCheckOptions) {
	k.bucket, k.prefix = o.bucket, o.prefix
	for _, r := range rules {
		if r.Key != k.Name {
			continue
		}
		if b := r.Buckets[0]; k.bucket == "" && !strings.Contains(b, "*") {
			k.bucket = b
		}
		if k.prefix == "" && len(r.Prefixes) > 0 {
			k.prefix = r.Prefixes[0]
		}
		k.bucketKeys = r.DEKReuse != (config.DEKReuse{})
		return
	}
}

// addTenant makes the key that of a tenant.
func (k *namedKey) addTenant(values string, o tenantCheckOptions) error {
	template, err := keytemplate.Parse(k.family.Template())
	if err != nil {
		return err
	}
	bucket, prefix, err := template.Object(values)
	if err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}

	k.bucket = cmp.Or(o.bucket, bucket, k.bucket)
	if o.prefix == "" && prefix != "" {
		k.prefix = prefix
	}
	id, got, err := template.Expand(k.bucket, k.prefix+"object")
	switch {
	case err != nil:
		return fmt.Errorf("s3://%s/%s: %w", k.bucket, k.prefix, err)
	case got != values:
		return fmt.Errorf("the objects in s3://%s/%s belong to the tenant %q, and not to %q",
			k.bucket, k.prefix, got, values)
	}
	k.Key = k.family.Expanded(o.name, id)
	return nil
}
