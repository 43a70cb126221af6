package config

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// TenantKeys is the name under which rules, metrics and the log refer to the
// keys of all tenants of TenantsDir. The key of the tenant acme is named
// tenant:acme.
const TenantKeys = "tenant"

// TenantSuffix is the end of the names of tenants' files.
const TenantSuffix = ".yaml"

// maxTenantFile limits the size of a tenant's file in bytes.
const maxTenantFile = 64 << 10

// Tenant is a tenant with its own key, from a file in Config.TenantsDir.
type Tenant struct {
	// Name is the name of the file without TenantSuffix.
	Name string
	// Secrets are the paths of the files that secrets were read from.
	Secrets []string
	TenantFile
}

// TenantFile is the content of a tenant's file.
type TenantFile struct {
	// Key is the tenant's key, without a name; ReadTenant sets the name. It
	// cannot be a template, or made of others.
	Key Key `yaml:"key" config:"required"`
	// Objects are the tenant's objects. They must lie in rules with Tenants.
	Objects []TenantObjects `yaml:"objects" config:"required"`
	// Clients are the clients of the tenant. Their grants must lie within
	// its objects. Without Allow, a client may read, write, delete and list
	// all of them.
	Clients []Client `yaml:"clients" scope:"server"`
	// ReadKeys are names of keys of the configuration. Objects of the tenant
	// under these keys can be read, but no new objects are encrypted under
	// them.
	ReadKeys []string `yaml:"read_keys"`
	// Limits are the tenant's own limits.
	Limits TenantLimits `yaml:"limits" scope:"server"`
}

// TenantObjects are objects of a tenant.
type TenantObjects struct {
	// Buckets are names of buckets, without patterns.
	Buckets []string `yaml:"buckets" config:"required"`
	// Prefixes are literal prefixes of object keys that end with "/".
	// Without prefixes, the whole buckets belong to the tenant.
	Prefixes []string `yaml:"prefixes"`
}

// TenantLimits override limits of the configuration for one tenant. 0 means
// the limit of the configuration.
type TenantLimits struct {
	// MaxConcurrentRequests limits the concurrent requests of all clients of
	// the tenant together, instead of Limits.MaxConcurrentPerClient.
	MaxConcurrentRequests int `yaml:"max_concurrent_requests"`
	// KMSMaxConcurrent and KMSMaxPerSecond are KMS.MaxConcurrent and
	// KMS.MaxPerSecond for the tenant's key.
	KMSMaxConcurrent int `yaml:"kms_max_concurrent"`
	KMSMaxPerSecond  int `yaml:"kms_max_per_second"`
}

// tenantName is the form of tenants' names. It leaves out ".", so that a name
// is the same on all file systems, and never a path.
var tenantName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)

// TenantOf returns the name of the tenant whose file has this name.
func TenantOf(file string) (name string, err error) {
	name, ok := strings.CutSuffix(file, TenantSuffix)
	if !ok || !tenantName.MatchString(name) {
		return "", fmt.Errorf("%q is not the name of a tenant's file: use NAME%s, where NAME is 1 to 64 of a-z, 0-9 "+
			"and '-', and begins and ends with a letter or digit", clip(file), TenantSuffix)
	}
	return name, nil
}

// ReadTenant reads the file of a tenant; see ParseTenant.
func ReadTenant(path string, c *Config) (*Tenant, error) {
	data, err := ReadTenantText(path)
	if err != nil {
		return nil, err
	}
	return ParseTenant(path, data, c)
}

// ParseTenant parses the content of a tenant's file, and checks it against the
// configuration c. path names the tenant, and is the name of the file in
// errors. Problems with the content are returned as *Error.
//
// It does not compare the tenant with other tenants; see package tenant.
func ParseTenant(path string, data []byte, c *Config) (*Tenant, error) {
	return newDecoder(path, nil).parseTenant(data, c)
}

// ParseTenantOffline is ParseTenant for commands without a server; see
// ParseOffline.
func ParseTenantOffline(path string, data []byte, c *Config) (*Tenant, error) {
	d := newDecoder(path, nil)
	d.offline = true
	return d.parseTenant(data, c)
}

func (d *decoder) parseTenant(data []byte, c *Config) (*Tenant, error) {
	d.tenant = true
	name, err := TenantOf(filepath.Base(d.file))
	if err != nil {
		return nil, err
	}

	t := &Tenant{Name: name}
	if root := d.document(data); root != nil && d.tenantFile(root, &t.TenantFile) {
		d.checkTenant(t, c)
	}
	if err := d.err(); err != nil {
		return nil, err
	}

	t.Secrets = d.secrets
	t.Key.Name = TenantKeys + ":" + name
	return t, nil
}

// ReadTenantText returns the content of a tenant's file, which must be a regular
// file, for ParseTenant.
func ReadTenantText(path string) ([]byte, error) {
	f, _, err := livefile.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, maxTenantFile+1)) //nolint:forbidigo // limited
	if err == nil && len(data) > maxTenantFile {
		err = fmt.Errorf("%s is larger than %d KiB", path, maxTenantFile>>10)
	}
	return data, err
}

// errTenantVariable refuses variables in tenants' files. Who writes such a
// file need not be trusted with the environment, which has the secrets of the
// configuration.
var errTenantVariable = errors.New("variables (${...}) are not allowed in the file of a tenant: " +
	"write the value, or for a secret file:/PATH; write $${ for a literal ${")

// leavesOut reports whether the setting with that path does not exist in the
// file of a tenant.
func (d *decoder) leavesOut(path string) bool {
	return d.tenant && (path == "key.name" || path == "key.members" || anonymousForm.MatchString(path))
}

// Unsigned requests belong to no tenant.
var anonymousForm = regexp.MustCompile(`^clients\[[0-9]+\]\.anonymous$`)

// mayOmit reports whether the required setting with that path may be omitted
// in the file of a tenant.
func (d *decoder) mayOmit(path string) bool { return d.tenant && allowForm.MatchString(path) }

var allowForm = regexp.MustCompile(`^clients\[[0-9]+\]\.allow$`)

// checkTenantsDir checks that there are tenants where rules name them.
func (d *decoder) checkTenantsDir(c *Config) {
	if c.TenantsDir == "" {
		for i := range c.Encryption.Rules {
			if r := &c.Encryption.Rules[i]; r.Tenants {
				d.fail(&r.Tenants, "tenants: true needs tenants_dir")
			}
		}
		return
	}

	if !slices.ContainsFunc(c.Encryption.Rules, func(r Rule) bool { return r.Tenants }) {
		d.fail(&c.TenantsDir, "tenants_dir needs a rule with tenants: true for the objects of the tenants")
	}
	for i := range c.Keys {
		if name := &c.Keys[i].Name; *name == TenantKeys || strings.HasPrefix(*name, TenantKeys+":") {
			d.fail(name, "the keys of tenants in tenants_dir are named tenant:NAME: choose another name")
		}
	}
}

// checkArea checks a rule for the objects of tenants.
func (d *decoder) checkArea(r *Rule) {
	const own = "a rule with tenants: true has no %s: "
	if d.given[&r.Key] {
		d.fail(&r.Key, own+"each tenant has its own key", "key")
	}
	if d.given[&r.AllowedKeys] {
		d.fail(&r.AllowedKeys, own+"a tenant uses its own key only", "allowed_keys")
	}
	if d.given[&r.Clients] {
		d.fail(&r.Clients, own+"who may do what is in the allow of clients", "clients")
	}
}

// tenantFile decodes n into f, and reports whether n was a mapping.
func (d *decoder) tenantFile(n *yaml.Node, f *TenantFile) bool {
	d.mapping(n, reflect.ValueOf(f).Elem(), "")
	return !d.failed[f]
}

// checkTenant checks values that are valid by themselves, and compares them
// with the configuration.
func (d *decoder) checkTenant(t *Tenant, c *Config) {
	d.checkTenantKey(&t.Key, c)
	for i := range t.Objects {
		d.checkObjects(&t.Objects[i], c.Encryption.Rules)
	}

	keys := make([]string, len(c.Keys))
	for i := range c.Keys {
		keys[i] = c.Keys[i].Name
	}
	for i := range t.ReadKeys {
		d.checkName(&t.ReadKeys[i], keys, "key", &c.Keys)
	}

	if !d.offline {
		d.checkTenantLimits(&t.Limits, c)
		d.checkTenantClients(t, c.Clients)
	}
}

func (d *decoder) checkTenantKey(k *Key, c *Config) {
	switch {
	case k.IsTogether():
		d.fail(&k.Provider, "the key of a tenant cannot be made of others: put such a key into the configuration, "+
			"with a rule of its own")
		return
	case k.IsTemplate():
		d.fail(k, "the key of a tenant is one key, and cannot have variables")
	}

	if c.Encryption.FormatVersion == 1 && k.RecoveryPublicKey != "" {
		d.fail(&k.RecoveryPublicKey, needsVersion2, "recovery_public_key")
	}
	d.checkKey(k)
	if d.given[&k.Timeout] {
		d.checkRange(&k.Timeout, "timeout", minKMSTimeout, maxKMSTimeout)
	} else {
		k.Timeout = c.KMS.Timeout
	}
}

// bucketForm is that of patternForm without patterns.
var bucketForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}$`)

// checkObjects checks that objects are unambiguous, and that a rule gives them
// to tenants.
func (d *decoder) checkObjects(o *TenantObjects, rules []Rule) {
	for i := range o.Prefixes {
		switch p := &o.Prefixes[i]; {
		case *p == "":
			d.fail(p, "a prefix is empty: omit prefixes for the whole bucket")
		case !strings.HasSuffix(*p, "/"):
			d.fail(p, "a prefix of a tenant must end with /, or it would cover others: acme is also in acme-2/")
		case strings.HasPrefix(*p, "/") || strings.Contains(*p, "//") || keyname.HasDots(*p):
			d.fail(p, "a prefix of a tenant must not begin with /, and must not have //, or the segments . and ..")
		}
	}

	for i := range o.Buckets {
		bucket := &o.Buckets[i]
		if !bucketForm.MatchString(*bucket) {
			d.fail(bucket, "not the name of a bucket; tenants cannot have patterns")
			continue
		}
		if len(o.Prefixes) == 0 && !inArea(rules, *bucket, "") {
			d.fail(bucket, "no rule of the configuration gives this whole bucket to tenants: "+
				"add prefixes, or a rule with tenants: true")
		}
		for j := range o.Prefixes {
			if !inArea(rules, *bucket, o.Prefixes[j]) {
				d.fail(&o.Prefixes[j], "no rule of the configuration gives this prefix to tenants "+
					"in all of these buckets: add a rule with tenants: true")
			}
		}
	}
}

// inArea reports whether a rule gives all objects with that prefix to tenants.
func inArea(rules []Rule, bucket, prefix string) bool {
	return slices.ContainsFunc(rules, func(r Rule) bool {
		return r.Tenants &&
			slices.ContainsFunc(r.Buckets, func(pattern string) bool { return glob.Match(pattern, bucket) }) &&
			(len(r.Prefixes) == 0 ||
				slices.ContainsFunc(r.Prefixes, func(p string) bool { return strings.HasPrefix(prefix, p) }))
	})
}

func (d *decoder) checkTenantLimits(l *TenantLimits, c *Config) {
	for _, one := range []struct {
		field *int
		most  int
		name  string
	}{
		{&l.MaxConcurrentRequests, c.Limits.MaxConcurrentRequests, "limits.max_concurrent_requests"},
		{&l.KMSMaxConcurrent, c.KMS.MaxConcurrent, "kms.max_concurrent"},
		{&l.KMSMaxPerSecond, c.KMS.MaxPerSecond, "kms.max_per_second"},
	} {
		if d.given[one.field] && (*one.field < 1 || *one.field > one.most) {
			d.fail(one.field, "this limit must be from 1 to %s of the configuration, %d", one.name, one.most)
		}
	}
}

// tenantActions are the actions of a client without allow.
var tenantActions = []string{"read", "write", "delete", "list"}

// checkTenantClients checks the clients, and gives those without allow all
// objects of the tenant.
func (d *decoder) checkTenantClients(t *Tenant, others []Client) {
	d.checkClients(t.Clients)
	for i := range t.Clients {
		client := &t.Clients[i]
		for j := range others {
			if client.Name == others[j].Name {
				d.fail(&client.Name, "the configuration already has a client with this name")
			}
			if client.AccessKey != "" && client.AccessKey == others[j].AccessKey {
				d.fail(&client.AccessKey, "the configuration already has a client with this access_key")
			}
		}

		for j := range client.Allow {
			d.checkTenantGrant(&client.Allow[j], t)
		}
		if len(client.Allow) == 0 && !d.given[&client.Allow] {
			for _, o := range t.Objects {
				client.Allow = append(client.Allow, Grant{o.Buckets, o.Prefixes, tenantActions})
			}
		}
	}
}

// checkTenantGrant refuses a grant beyond the objects of the tenant.
func (d *decoder) checkTenantGrant(g *Grant, t *Tenant) {
	const beyond = "this grants objects that are not the tenant's: name buckets and prefixes within its objects"
	for i := range g.Buckets {
		if len(g.Prefixes) == 0 && !t.owns(g.Buckets[i], "") {
			d.fail(&g.Buckets[i], beyond)
		}
		for j := range g.Prefixes {
			if !t.owns(g.Buckets[i], g.Prefixes[j]) {
				d.fail(&g.Prefixes[j], beyond)
			}
		}
	}
}

// owns reports whether all objects with that prefix are the tenant's.
func (t *Tenant) owns(bucket, prefix string) bool {
	return slices.ContainsFunc(t.Objects, func(o TenantObjects) bool {
		return slices.Contains(o.Buckets, bucket) && (len(o.Prefixes) == 0 ||
			slices.ContainsFunc(o.Prefixes, func(p string) bool { return strings.HasPrefix(prefix, p) }))
	})
}

// Fits returns an error if the tenant does not fit a configuration other than
// the one that it was read with: its objects are not in a rule with Tenants, or
// one of its clients is there.
func (t *Tenant) Fits(c *Config) error {
	for _, o := range t.Objects {
		for _, bucket := range o.Buckets {
			fits := len(o.Prefixes) > 0 || inArea(c.Encryption.Rules, bucket, "")
			for _, prefix := range o.Prefixes {
				fits = fits && inArea(c.Encryption.Rules, bucket, prefix)
			}
			if !fits {
				return fmt.Errorf("tenant %s: no rule gives its objects in bucket %s to tenants", t.Name, bucket)
			}
		}
	}

	for i := range t.Clients {
		for j := range c.Clients {
			a, b := &t.Clients[i], &c.Clients[j]
			if a.Name == b.Name || a.AccessKey == b.AccessKey {
				return fmt.Errorf("tenant %s: its client %s has the name or access_key of the configured client %s",
					t.Name, a.Name, b.Name)
			}
		}
	}
	return nil
}
