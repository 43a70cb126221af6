package config

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/glob"
)

const (
	maxTTL          = 24 * time.Hour
	minKMSTimeout   = 100 * time.Millisecond
	maxKMSTimeout   = 30 * time.Second
	minSecretLength = 8
	minAdminToken   = 16
)

// check checks values that are valid by themselves. fail ignores fields
// that already have a problem.
func (d *decoder) check(c *Config) {
	d.checkOrigin(&c.Origin)
	if c.TenantsDir == "" {
		d.require(&c.Keys, "keys")
	}
	d.checkKeys(c.Keys)
	d.checkTenantsDir(c)
	d.checkTimeouts(c)
	d.checkRules(c)
	d.checkFormat(c)
	d.checkDEKCache(&c.DEKCache)
	d.checkKMS(&c.KMS)

	if !d.offline {
		d.checkServer(c)
	}
}

// checkServer checks the settings that ParseOffline skips.
func (d *decoder) checkServer(c *Config) {
	d.checkListeners(c)
	if c.AdminToken != "" && len(c.AdminToken) < minAdminToken {
		d.fail(&c.AdminToken, "admin_token has fewer than %d characters", minAdminToken)
	}

	if c.Domain != "" {
		d.checkDomain(&c.Domain)
	}
	for i := range c.Domains {
		d.checkDomain(&c.Domains[i])
	}
	d.checkProxies(c)
	d.checkTLS(&c.TLS)
	if c.TenantsDir == "" {
		d.require(&c.Clients, "clients")
	}
	d.checkClients(c.Clients)
	d.checkRuleClients(c)
	d.checkOutageWait(c)
	d.checkLog(&c.Log)
	d.checkAudit(&c.Audit)
	d.checkTracing(&c.Tracing)
	d.checkMetrics(&c.Metrics)

	d.checkLimits(&c.Limits)
}

// require reports a setting of the file that is missing.
func (d *decoder) require(field any, name string) {
	if !d.given[field] {
		d.fail(field, "%q is missing in the file", name)
	}
}

// empty reports whether a field has no value, for another reason than an
// unreadable value.
func empty[T ~string](d *decoder, field *T) bool { return *field == "" && !d.failed[field] }

func (d *decoder) checkTLS(t *TLS) {
	switch {
	case t.CertFile != "" && empty(d, &t.KeyFile):
		d.fail(&t.CertFile, "tls.cert_file needs a tls.key_file")
	case empty(d, &t.CertFile) && t.KeyFile != "":
		d.fail(&t.KeyFile, "tls.key_file needs a tls.cert_file")
	case empty(d, &t.CertFile) && t.ClientCAFile != "":
		d.fail(&t.ClientCAFile, "tls.client_ca_file needs a tls.cert_file and a tls.key_file")
	}
}

func (d *decoder) checkOrigin(o *Origin) {
	const both = "; omit both to use the AWS SDK's default credential chain"
	d.checkEndpoint(&o.Endpoint, "origin.endpoint")

	switch {
	case o.AccessKey != "" && empty(d, &o.SecretKey):
		d.fail(&o.AccessKey, "origin.access_key needs an origin.secret_key%s", both)
	case empty(d, &o.AccessKey) && o.SecretKey != "":
		d.fail(&o.SecretKey, "origin.secret_key needs an origin.access_key%s", both)
	}

	d.checkAccessKey(&o.AccessKey, "origin.access_key")
	d.checkSSE(&o.SSE)
	d.checkRange(&o.ConnectTimeout, "origin.connect_timeout", 100*time.Millisecond, time.Minute)
	d.checkRange(&o.ResponseTimeout, "origin.response_timeout", time.Second, time.Hour)
	d.checkRange(&o.IdleTimeout, "origin.idle_timeout", time.Second, time.Hour)
}

func (d *decoder) checkSSE(s *SSE) {
	ofKMS := s.Algorithm == "aws:kms" || s.Algorithm == "aws:kms:dsse"
	switch {
	case s.KeyID != "" && !ofKMS:
		d.fail(&s.KeyID, "origin.sse.key_id needs origin.sse.algorithm aws:kms or aws:kms:dsse")
	case len(s.KeyID) > maxStoreKeyID || strings.ContainsFunc(s.KeyID, isNotPrintable):
		d.fail(&s.KeyID, "origin.sse.key_id must be the id, ARN or alias of a key: at most %d ASCII characters, "+
			"without spaces", maxStoreKeyID)
	}
	if s.BucketKey && s.Algorithm != "aws:kms" {
		d.fail(&s.BucketKey, "origin.sse.bucket_key needs origin.sse.algorithm aws:kms")
	}
}

func isNotPrintable(r rune) bool { return r <= ' ' || r > '~' }

// maxStoreKeyID is the longest key id of AWS KMS, in bytes.
const maxStoreKeyID = 2048

func (d *decoder) checkClients(clients []Client) {
	names, accessKeys := make(map[string]*string), make(map[string]*string)
	var anonymous *Client

	for i := range clients {
		c := &clients[i]
		if d.failed[c] {
			continue
		}

		d.checkUnique(&c.Name, names, "a client with this name")
		for j := range c.Allow {
			d.checkPatterns(c.Allow[j].Buckets)
		}

		switch {
		case !c.Anonymous:
			d.checkUnique(&c.AccessKey, accessKeys, "a client with this access_key")
			d.checkCredentials(c, fmt.Sprintf("clients[%d]", i))
		case anonymous != nil:
			d.fail(&c.Anonymous, "there is already an anonymous client, on line %d",
				d.places[&anonymous.Anonymous].line)
		default:
			anonymous = c
			d.checkAnonymous(c)
		}
	}
}

func (d *decoder) checkCredentials(c *Client, path string) {
	switch {
	case c.AccessKey != "":
	case d.given[&c.AccessKey]:
		d.fail(&c.AccessKey, "%s.access_key is empty", path)
	default:
		d.fail(&c.AccessKey, "%q is missing in %s", "access_key", path)
	}

	d.checkAccessKey(&c.AccessKey, "access_key")
	switch {
	case c.SecretKey == "" && !d.given[&c.SecretKey]:
		d.fail(&c.SecretKey, "%q is missing in %s", "secret_key", path)
	case len(c.SecretKey) < minSecretLength:
		d.fail(&c.SecretKey, "secret_key has fewer than %d characters", minSecretLength)
	}
}

// checkAnonymous checks the anonymous client, which anyone can use.
func (d *decoder) checkAnonymous(c *Client) {
	if d.given[&c.AccessKey] {
		d.fail(&c.AccessKey, "an anonymous client has no access_key")
	}
	if d.given[&c.SecretKey] {
		d.fail(&c.SecretKey, "an anonymous client has no secret_key")
	}

	for i := range c.Allow {
		for j := range c.Allow[i].Actions {
			switch action := &c.Allow[i].Actions[j]; *action {
			case "admin", "lock", "store_admin":
				d.fail(action, "an anonymous client cannot be allowed %s", *action)
			}
		}
	}
}

// checkUnique reports a value that an earlier field already has. It does
// not show the value, which may come from the environment.
func (d *decoder) checkUnique(field *string, earlier map[string]*string, what string) {
	if *field == "" {
		return
	}
	if first, ok := earlier[*field]; ok {
		d.fail(field, "there is already %s, on line %d", what, d.places[first].line)
		return
	}

	earlier[*field] = field
}

// In a signature's credential scope, the access key is followed by a slash.
var accessKeyForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

func (d *decoder) checkAccessKey(field *string, name string) {
	switch {
	case strings.HasPrefix(*field, "file:"):
		d.fail(field, "%s cannot be read from a file; only secret_key can", name)
	case *field != "" && !accessKeyForm.MatchString(*field):
		d.fail(field, "%s must be 1 to 128 letters, digits, '.', '_' and '-'", name)
	}
}

// Bucket names as in S3, including older ones with capital letters and
// underscores, and "*".
var patternForm = regexp.MustCompile(`^[A-Za-z0-9._*-]{1,255}$`)

func (d *decoder) checkPatterns(buckets []string) {
	for i := range buckets {
		if !patternForm.MatchString(buckets[i]) {
			d.fail(&buckets[i], "not a bucket name or a pattern (* matches any run of characters)")
		}
	}
}

func (d *decoder) checkKeys(keys []Key) {
	names := make(map[string]*string)
	for i := range keys {
		k := &keys[i]
		d.checkUnique(&k.Name, names, "a key with this name")
		d.checkKey(k)

		if k.IsTogether() {
			d.checkMembers(k, keys)
		}
		if _, ok := providerSettings[k.Provider]; ok && k.IsTemplate() {
			d.checkTemplate(k, keys)
		}
	}
}

const needsVersion2 = "%s needs encryption.format_version 2: readers of version 1 cannot read such objects"

// checkFormat refuses what the version of the format does not have. Older
// readers do not know several wraps of a data key either.
func (d *decoder) checkFormat(c *Config) {
	switch c.Encryption.FormatVersion {
	case 1:
	case 2:
		return
	default:
		d.fail(&c.Encryption.FormatVersion, "format_version must be 1 or 2")
		return
	}

	for i := range c.Encryption.Rules {
		if r := &c.Encryption.Rules[i]; r.SealMetadata {
			d.fail(&r.SealMetadata, needsVersion2, "seal_metadata")
		}
	}
	for i := range c.Keys {
		switch k := &c.Keys[i]; {
		case k.RecoveryPublicKey != "":
			d.fail(&k.RecoveryPublicKey, needsVersion2, "recovery_public_key")
		case k.IsTogether():
			d.fail(&k.Provider, needsVersion2, "provider "+string(k.Provider))
		}
	}
}

// checkKey checks a key by itself.
func (d *decoder) checkKey(k *Key) {
	if _, ok := providerSettings[k.Provider]; !ok {
		return // already reported
	}

	d.checkSettings(k)
	switch k.Provider {
	case AWSKMS:
		d.checkEndpoint(&k.Endpoint, "endpoint")
		d.checkSecure(&k.Endpoint, "endpoint", k.Insecure)

		if k.RoleARN != "" && !strings.HasPrefix(k.RoleARN, "arn:") {
			d.fail(&k.RoleARN, "role_arn must begin with arn:")
		}
		if k.ExternalID != "" && k.RoleARN == "" {
			d.fail(&k.ExternalID, "external_id needs a role_arn")
		}

		d.checkAlsoKnownAs(k)
	case VaultTransit:
		d.checkEndpoint(&k.Address, "address")
		d.checkSecure(&k.Address, "address", k.Insecure)
		d.checkLogin(&k.Login)
	case AzureKeyVault:
		d.checkBindings(k)
	case PKCS11:
		if _, err := hex.DecodeString(k.KeyID); err != nil {
			d.fail(&k.KeyID, "key_id of a pkcs11 key must be its CKA_ID in hexadecimal")
		}
	default: // no further checks
	}
	d.checkRecovery(k)
}

// checkMembers checks the members of a key that consists of others.
func (d *decoder) checkMembers(k *Key, keys []Key) {
	const most = 4 // of the format
	if n := len(k.Members); n < 2 && n > 0 || n > most {
		d.fail(&k.Members, "members must be two to four keys")
	}

	var names []string
	for i := range keys {
		if !keys[i].IsTogether() {
			names = append(names, keys[i].Name)
		}
	}
	seen := make(map[string]bool)
	for i := range k.Members {
		name := &k.Members[i]
		switch {
		case seen[*name]:
			d.fail(name, "this key is already a member")
		case !slices.Contains(names, *name):
			d.fail(name, "there is no key with this name that is not itself made of others%s", didYouMean(*name, names))
		default:
			d.checkMember(name, keys)
		}
		seen[*name] = true
	}
	d.checkMembersFit(k, keys)
}

// The format's limit on a key's id and its wrapped data keys together, and
// what a bundle takes besides the wraps. See docs/format.md, sections 8 and 10.
const (
	maxFields    = 888
	bundleFixed  = 12
	wrapFixed    = 4
	recoveryWrap = 88
)

// wrapSizes has the shortest wrapped data key of each provider, in bytes.
var wrapSizes = map[Provider]int{
	AWSKMS: 184, VaultTransit: 89, GCPKMS: 113, AzureKeyVault: 137, PKCS11: 61, Local: 61,
}

// checkMembersFit refuses members whose wraps never fit into a part header
// together. Others are noticed by cmekproxy check, and at the first use.
func (d *decoder) checkMembersFit(k *Key, keys []Key) {
	size := bundleFixed + len(k.Provider) + len(":") + len(k.Name)
	if k.RecoveryPublicKey != "" {
		size += recoveryWrap
	}
	for i := range keys {
		member := &keys[i]
		if slices.Contains(k.Members, member.Name) {
			size += wrapFixed + len(member.KeyID) + wrapSizes[member.Provider]
		}
	}
	if size > maxFields {
		d.fail(&k.Members, "the wrapped data keys of these members take %d bytes or more, and %d fit into an object: "+
			"use fewer members, or members of another provider", size, maxFields)
	}
}

// checkMember refuses a member whose id can change: objects name it.
func (d *decoder) checkMember(name *string, keys []Key) {
	for i := range keys {
		k := &keys[i]
		switch {
		case k.Name != *name:
		case k.IsTemplate():
			d.fail(name, "a member must be one key: this one is a template")
		case len(k.AlsoKnownAs) > 0 || strings.Contains(k.KeyID, "alias/"):
			d.fail(name, "a member must be configured with its own id, and without also_known_as: an alias can move")
		}
	}
}

// recoveryForm is the form of a recovery public key: 32 bytes in base64.
var recoveryForm = regexp.MustCompile(`^cmekproxy-recovery-public-v1:[A-Za-z0-9+/]{43}=$`)

func (d *decoder) checkRecovery(k *Key) {
	switch {
	case k.RecoveryPublicKey == "" || recoveryForm.MatchString(k.RecoveryPublicKey):
	case strings.Contains(k.RecoveryPublicKey, "private"):
		d.fail(&k.RecoveryPublicKey, "recovery_public_key is a private key, which must stay offline")
	default:
		d.fail(&k.RecoveryPublicKey, "recovery_public_key must be a public key from cmekproxy recovery keygen")
	}
}

// checkBindings checks the bindings of an Azure key, and the forms of its
// blobs.
func (d *decoder) checkBindings(k *Key) {
	if len(k.Bindings) > 0 && k.Algorithm == "A256KW" {
		d.fail(&k.Bindings, "bindings are for RSA keys; A256KW keys do not need them")
	}

	switch {
	case k.AcceptForm < 0 || k.AcceptForm > 2:
		d.fail(&k.AcceptForm, "accept_form must be 1 or 2")
	case k.WriteForm < 0 || k.WriteForm > 2:
		d.fail(&k.WriteForm, "write_form must be 1 or 2")
	case k.WriteForm == 2 && len(k.Bindings) == 0:
		d.fail(&k.WriteForm, "write_form: 2 needs bindings (make one with cmekproxy keys bind)")
	case k.WriteForm == 1 && k.AcceptForm == 2:
		d.fail(&k.WriteForm, "write_form: 1 creates blobs that accept_form: 2 refuses")
	case k.AcceptForm == 2 && len(k.Bindings) == 0:
		d.fail(&k.AcceptForm, "accept_form: 2 needs bindings (make one with cmekproxy keys bind)")
	}
}

// checkSecure reports a URL that would send data keys unencrypted over a
// network, unless insecure is set.
func (d *decoder) checkSecure(field *string, name string, insecure bool) { //nolint:revive // insecure is a setting
	u, err := url.Parse(*field)
	if err != nil || u.Scheme != "http" || loopback(u.Hostname()) || insecure {
		return
	}
	d.fail(field, "%s is http:// and not on this machine: data keys would be sent unencrypted; "+
		"use https:// or set insecure: true", name)
}

// checkTimeouts sets the timeout of each key without one to the timeout for
// all keys.
func (d *decoder) checkTimeouts(c *Config) {
	for i := range c.Keys {
		if t := &c.Keys[i].Timeout; d.given[t] {
			d.checkRange(t, "timeout", minKMSTimeout, maxKMSTimeout)
		} else {
			*t = c.KMS.Timeout
		}
	}
}

// An alias is not allowed, because it could move again.
var awsKeyForm = regexp.MustCompile(`^arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$`)

func (d *decoder) checkAlsoKnownAs(k *Key) {
	earlier := make(map[string]*string)
	for i := range k.AlsoKnownAs {
		id := &k.AlsoKnownAs[i]
		if !awsKeyForm.MatchString(*id) {
			d.fail(id, "also_known_as must contain ARNs of keys, such as arn:aws:kms:REGION:ACCOUNT:key/ID")
			continue
		}
		d.checkUnique(id, earlier, "this ARN")
	}
}

// checkSettings compares the settings of a key with those of its provider.
func (d *decoder) checkSettings(k *Key) {
	settings := providerSettings[k.Provider]
	v := reflect.ValueOf(k).Elem()
	for i, f := range fieldsOf(v.Type()) {
		field := v.Field(i)
		switch needed := slices.Contains(settings.needs, f.name); {
		case f.required:
		case needed && field.IsZero():
			d.fail(field.Addr().Interface(), "provider %s needs %s", k.Provider, f.name)
		case f.name == "recovery_public_key":
		case !needed && !field.IsZero() && !slices.Contains(settings.takes, f.name):
			d.fail(field.Addr().Interface(), "provider %s has no %s", k.Provider, f.name)
		}
	}
}

func (d *decoder) checkLogin(l *Login) {
	ways := 0
	for _, given := range []bool{
		l.Token != "", l.TokenFile != "", l.AppRole != AppRole{},
		l.Kubernetes != Kubernetes{},
	} {
		if given {
			ways++
		}
	}

	switch {
	case ways > 1:
		d.fail(l, "login has %d of token, token_file, approle and kubernetes; set exactly one", ways)
	case l.AppRole != AppRole{} && l.AppRole.RoleID == "":
		d.fail(&l.AppRole, "login.approle needs a role_id")
	case l.AppRole.SecretID != "" && l.AppRole.SecretIDFile != "":
		d.fail(&l.AppRole, "login.approle has both secret_id and secret_id_file; set one")
	case l.Kubernetes != Kubernetes{} && l.Kubernetes.Role == "":
		d.fail(&l.Kubernetes, "login.kubernetes needs a role")
	}
}

func (d *decoder) checkRules(c *Config) {
	keys := make([]string, len(c.Keys))
	for i := range c.Keys {
		keys[i] = c.Keys[i].Name
	}

	var catchAll *Rule
	for i := range c.Encryption.Rules {
		r := &c.Encryption.Rules[i]
		if d.failed[r] {
			continue
		}

		switch {
		case r.Tenants: // no other rule applies to its objects
		case catchAll != nil:
			d.fail(r, "this rule is never reached: the one on line %d matches everything", d.places[catchAll].line)
		case matchesAll(r):
			catchAll = r
		}

		d.checkPatterns(r.Buckets)
		if r.Tenants {
			d.checkArea(r)
		} else {
			d.checkRuleKey(r, i, keys, c)
		}
		d.checkKeyPatterns(r.AllowedKeys, keys)
		d.checkKeyPatterns(r.ReadKeys, keys)
		d.checkReuse(&r.DEKReuse)
	}
}

func (d *decoder) checkRuleKey(r *Rule, i int, keys []string, c *Config) {
	switch {
	case r.Key == "" && !d.given[&r.Key]:
		d.fail(&r.Key, "%q is missing in encryption.rules[%d]", "key", i)
	case r.Key == "":
		d.fail(&r.Key, "encryption.rules[%d].key is empty", i)
	default:
		d.checkName(&r.Key, keys, "key", &c.Keys)
	}
}

// checkRuleClients reports rules for unknown clients.
func (d *decoder) checkRuleClients(c *Config) {
	clients := make([]string, len(c.Clients))
	for i := range c.Clients {
		clients[i] = c.Clients[i].Name
	}

	for i := range c.Encryption.Rules {
		r := &c.Encryption.Rules[i]
		if d.failed[r] {
			continue
		}

		for j := range r.Clients {
			d.checkName(&r.Clients[j], clients, "client", &c.Clients)
		}
	}
}

// checkKeyPatterns reports patterns that match no key, which are probably
// misspelled.
func (d *decoder) checkKeyPatterns(patterns, keys []string) {
	for i, pattern := range patterns {
		if !slices.ContainsFunc(keys, func(name string) bool { return glob.Match(pattern, name) }) {
			d.fail(&patterns[i], "there is no key with this name%s", didYouMean(pattern, keys))
		}
	}
}

func (d *decoder) checkReuse(r *DEKReuse) {
	if *r == (DEKReuse{}) && !d.given[&r.MaxAge] {
		return
	}
	if r.MaxAge <= 0 || r.MaxAge > maxTTL {
		d.fail(&r.MaxAge, "dek_reuse.max_age must be above 0 and at most 24h")
	}

	if r.MaxObjects < 0 || r.MaxObjects == 0 && d.given[&r.MaxObjects] {
		d.fail(&r.MaxObjects, "dek_reuse.max_objects must be 1 or more")
	}
	if r.MaxBytes < 0 || r.MaxBytes == 0 && d.given[&r.MaxBytes] {
		d.fail(&r.MaxBytes, "dek_reuse.max_bytes must be 1 or more")
	}
}

func matchesAll(r *Rule) bool {
	return slices.Contains(r.Buckets, "*") && len(r.Clients) == 0 &&
		(len(r.Prefixes) == 0 || slices.Contains(r.Prefixes, ""))
}

// checkName reports a name that is not in the list, unless the list itself
// could not be read.
func (d *decoder) checkName(field *string, names []string, what string, list any) {
	if !slices.Contains(names, *field) && !d.failed[list] {
		d.fail(field, "there is no %s with this name%s", what, didYouMean(*field, names))
	}
}

func (d *decoder) checkDEKCache(c *DEKCache) {
	switch {
	case c.TTL <= 0:
		d.fail(&c.TTL, "dek_cache.ttl must be above 0")
	case c.TTL > maxTTL:
		d.fail(&c.TTL, "dek_cache.ttl must be at most 24h")
	}

	if c.MaxEntries < 1 {
		d.fail(&c.MaxEntries, "dek_cache.max_entries must be 1 or more")
	}

	switch {
	case c.RevocationProbe < 0:
		d.fail(&c.RevocationProbe, "dek_cache.revocation_probe must not be negative; 0 disables it")
	case c.RevocationProbe < c.TTL || c.RevocationProbe == 0 || d.failed[&c.TTL]: // valid, or the TTL has a problem
	case d.given[&c.RevocationProbe]:
		d.fail(&c.RevocationProbe, "dek_cache.revocation_probe must be shorter than ttl (%v); 0 disables it", c.TTL)
	default:
		c.RevocationProbe = 0
	}
}

// checkOutageWait checks that outage_wait is shorter than idle_timeout,
// which would otherwise end the waiting transfers.
func (d *decoder) checkOutageWait(c *Config) {
	wait, idle := &c.DEKCache.OutageWait, c.Limits.IdleTimeout
	switch {
	case *wait < 0:
		d.fail(wait, "dek_cache.outage_wait must not be negative; 0 disables it")
	case *wait < idle || *wait == 0 || d.failed[&c.Limits.IdleTimeout]: // valid, or the idle timeout has a problem
	case d.given[wait]:
		d.fail(wait, "dek_cache.outage_wait must be shorter than limits.idle_timeout (%v)", idle)
	default:
		*wait = idle / 2
	}
}

func (d *decoder) checkKMS(k *KMS) {
	if k.MaxConcurrent < 1 || k.MaxConcurrent > 10_000 {
		d.fail(&k.MaxConcurrent, "kms.max_concurrent must be from 1 to 10000")
	}
	if k.MaxPerSecond < 1 || k.MaxPerSecond > 100_000 {
		d.fail(&k.MaxPerSecond, "kms.max_per_second must be from 1 to 100000")
	}

	if k.MaxOpenKeys < 1 || k.MaxOpenKeys > 100_000 {
		d.fail(&k.MaxOpenKeys, "kms.max_open_keys must be from 1 to 100000")
	}

	d.checkRange(&k.Timeout, "kms.timeout", minKMSTimeout, maxKMSTimeout)
	if !(k.PricePer10000 >= 0 && k.PricePer10000 <= 1e6) { // also false for NaN
		d.fail(&k.PricePer10000, "kms.price_per_10000 must be from 0 to 1000000")
	}
	if !currencyForm.MatchString(k.Currency) {
		d.fail(&k.Currency, "kms.currency must be 1 to 8 letters or signs, such as USD")
	}
}

var currencyForm = regexp.MustCompile(`^[\p{L}\p{Sc}]{1,8}$`)

func (d *decoder) checkLog(l *Log) {
	if _, ok := l.AccessEvery(); !ok {
		d.fail(&l.Access, "log.access must be on, off, or a number from 2 to 1000000, which logs one in so many")
	}
}

func (d *decoder) checkAudit(a *Audit) {
	if a.File != "" && a.Stdout {
		d.fail(&a.Stdout, "audit.stdout and audit.file cannot both be set")
	}
	if a.MaxSizeMB < 0 || a.MaxSizeMB > 1_000_000 {
		d.fail(&a.MaxSizeMB, "audit.max_size_mb must be from 0 to 1000000; 0 means no limit")
	}

	if a.MaxAgeDays < 0 || a.MaxAgeDays > 36_500 {
		d.fail(&a.MaxAgeDays, "audit.max_age_days must be from 0 to 36500; 0 means forever")
	}
	if a.MaxFiles < 0 || a.MaxFiles > 100_000 {
		d.fail(&a.MaxFiles, "audit.max_files must be from 0 to 100000; 0 means all")
	}
}

// maxNames limits series: each client and bucket has six.
const maxNames = 10_000

func (d *decoder) checkMetrics(m *Metrics) {
	if m.Clients < 0 || m.Clients > maxNames {
		d.fail(&m.Clients, "metrics.clients must be from 0 to %d; 0 means no counters by client", maxNames)
	}
	if m.Buckets < 0 || m.Buckets > maxNames {
		d.fail(&m.Buckets, "metrics.buckets must be from 0 to %d; 0 means no counters by bucket", maxNames)
	}
}

func (d *decoder) checkLimits(l *Limits) {
	d.checkRange(&l.HeaderTimeout, "limits.header_timeout", 100*time.Millisecond, 10*time.Minute)
	d.checkRange(&l.IdleTimeout, "limits.idle_timeout", time.Second, 24*time.Hour)
	d.checkRange(&l.ShutdownGrace, "limits.shutdown_grace", 0, time.Hour)

	switch {
	case l.ShutdownDelay < 0:
		d.fail(&l.ShutdownDelay, "limits.shutdown_delay must not be negative; 0 disables it")
	case l.ShutdownDelay <= l.ShutdownGrace || d.failed[&l.ShutdownGrace]: // valid, or the grace has a problem
	case d.given[&l.ShutdownDelay]:
		d.fail(&l.ShutdownDelay, "limits.shutdown_delay must not be longer than shutdown_grace (%v)",
			l.ShutdownGrace)
	default:
		l.ShutdownDelay = l.ShutdownGrace
	}

	if l.MaxConcurrentRequests < 1 || l.MaxConcurrentRequests > 1_000_000 {
		d.fail(&l.MaxConcurrentRequests, "limits.max_concurrent_requests must be from 1 to 1000000")
	}
	if n := l.MaxConcurrentPerClient; n < 0 || n > l.MaxConcurrentRequests {
		d.fail(&l.MaxConcurrentPerClient,
			"limits.max_concurrent_per_client must be from 0 to max_concurrent_requests; "+
				"0 means three quarters of that")
	}

	if n := l.MaxConcurrentUnsigned; n < 0 || n > l.MaxConcurrentRequests {
		d.fail(&l.MaxConcurrentUnsigned,
			"limits.max_concurrent_unsigned must be from 0 to max_concurrent_requests; 0 means a sixteenth of that")
	}
	if l.Memory != 0 && l.Memory < 64<<20 {
		d.fail(&l.Memory, "limits.memory must be 64MiB or more; 0 means the limit of GOMEMLIMIT or the control group")
	}
	if l.MaxConnections < 0 || l.MaxConnections > 4_000_000 {
		d.fail(&l.MaxConnections,
			"limits.max_connections must be from 0 to 4000000; 0 means four times max_concurrent_requests")
	} else if l.MaxConnections == 0 {
		l.MaxConnections = 4 * l.MaxConcurrentRequests
	}
	if l.MinBytesPerSecond < 1 || l.MinBytesPerSecond > 1_000_000_000 {
		d.fail(&l.MinBytesPerSecond, "limits.min_bytes_per_second must be from 1 to 1000000000")
	}
}

func (d *decoder) checkRange(field *time.Duration, name string, least, most time.Duration) {
	if *field < least || *field > most {
		d.fail(field, "%s must be from %v to %v", name, least, most)
	}
}
