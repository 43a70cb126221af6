package config

import (
	"strconv"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

// Config is the content of a config file. Struct tags describe the
// settings: yaml is the key in the file, and values lists all allowed
// values. Settings with config tag "required" must be present and not
// empty; other settings default to the values in defaults. Settings with
// scope tag "server" concern only the server, and ParseOffline skips them.
//
// The reload tag says whether a reload applies a change ("live"), or whether it
// needs a restart ("restart"). A struct's tag is for all settings in it that
// have none. See Compare.
type Config struct {
	// Listen is the address of the S3 port, as HOST:PORT. An empty host
	// means all interfaces.
	Listen string `yaml:"listen" scope:"server" config:"required" reload:"restart"`
	// AdminListen is the address of /admin, as HOST:PORT. It also serves
	// /healthz, /readyz and /metrics unless these have other addresses.
	// Default 127.0.0.1:9001.
	AdminListen string `yaml:"admin_listen" scope:"server" reload:"restart"`
	// HealthListen is the address of /healthz and /readyz, and
	// MetricsListen that of /metrics. Empty means AdminListen. They may be
	// equal.
	HealthListen  string `yaml:"health_listen" scope:"server" reload:"restart"`
	MetricsListen string `yaml:"metrics_listen" scope:"server" reload:"restart"`
	// AdminToken is the bearer token for requests to /admin. At least 16
	// characters. If empty, /admin accepts requests from loopback only.
	AdminToken Secret `yaml:"admin_token" scope:"server" reload:"live"`
	// Domain is a single entry of Domains, for configurations with only one.
	Domain string `yaml:"domain" scope:"server" reload:"live"`
	// Domains are the base domains of virtual-host-style requests. With
	// s3.example.com, a request to photos.s3.example.com is for the bucket
	// photos. If empty, only path-style requests are supported.
	Domains []string `yaml:"domains" scope:"server" reload:"live"`
	// TrustedProxies are networks of load balancers and other proxies, as
	// ADDRESS/BITS, that say the address of their client: in X-Forwarded-For,
	// or with ProxyProtocol. Empty means that no one is trusted to.
	TrustedProxies []string `yaml:"trusted_proxies" scope:"server" reload:"restart"`
	// ProxyProtocol says whether connections to the S3 port begin with a
	// PROXY protocol header. With Required, all of them must come from
	// TrustedProxies and have one. Off or Required, default Off.
	ProxyProtocol string `yaml:"proxy_protocol" scope:"server" reload:"restart" values:"off required"`
	// TLS enables TLS on the S3 port. Without it, the port uses plain HTTP.
	TLS TLS `yaml:"tls" scope:"server" reload:"live"`
	// Origin is the store behind the proxy.
	Origin Origin `yaml:"origin" config:"required" reload:"restart"`
	// Clients lists who may use the proxy. At least one without TenantsDir.
	Clients []Client `yaml:"clients" scope:"server" reload:"live"`
	// SessionCredentialsFile is a JSON file with temporary credentials for
	// Clients. It is reloaded when it changes. Empty means none.
	SessionCredentialsFile string `yaml:"session_credentials_file" scope:"server" reload:"live"`
	// TenantsDir is a directory with a file for each tenant, NAME.yaml; see
	// Tenant. It is read again when it changes. Empty means none.
	TenantsDir string `yaml:"tenants_dir" reload:"restart"`
	// Keys are the KMS keys for use in rules. At least one without
	// TenantsDir.
	Keys []Key `yaml:"keys" reload:"live"`
	// Encryption determines which key protects which object.
	Encryption Encryption `yaml:"encryption" config:"required"`
	// DEKCache limits how long an unwrapped data key (DEK) may be used.
	DEKCache DEKCache `yaml:"dek_cache" reload:"live"`
	// KMS limits the calls to a KMS.
	KMS KMS `yaml:"kms" reload:"live"`
	// Log configures logging.
	Log Log `yaml:"log" scope:"server" reload:"live"`
	// Audit configures the audit log. Without it, there is no audit log.
	Audit Audit `yaml:"audit" scope:"server" reload:"live"`
	// Tracing sends spans to a receiver. Without it, there is no tracing.
	Tracing Tracing `yaml:"tracing" scope:"server" reload:"restart"`
	// Metrics adds metrics whose number depends on the load.
	Metrics Metrics `yaml:"metrics" scope:"server" reload:"restart"`
	// ReloadOnChange reloads the file when its content changes, as SIGHUP does.
	// Default false.
	ReloadOnChange bool `yaml:"reload_on_change" scope:"server" reload:"live"`
	// Limits protect the proxy from its clients.
	Limits Limits `yaml:"limits" scope:"server" reload:"live"`
}

// TLS is the certificate of the S3 port. If all paths are empty, TLS is
// off.
type TLS struct {
	// CertFile and KeyFile are PEM files. Set both or neither.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile is a PEM file with certificate authorities. If it is
	// set, clients must present a certificate from one of them, in addition
	// to their signature.
	ClientCAFile string `yaml:"client_ca_file"`
	// EndsOnThisMachine means that another process on this machine
	// terminates TLS and forwards requests over loopback. Such requests
	// count as secure, which SSE-C requires. Default false.
	EndsOnThisMachine bool `yaml:"ends_on_this_machine"`
}

// Origin is the store behind the proxy.
type Origin struct {
	// Endpoint is the URL of the store: http or https, host and port, no
	// path.
	Endpoint string `yaml:"endpoint" config:"required"`
	// Region is the region in signatures of requests to the store.
	Region string `yaml:"region" config:"required"`
	// AccessKey and SecretKey are the proxy's credentials for the store.
	// Set both or neither. Without them, the AWS SDK's default credential
	// chain is used.
	AccessKey string `yaml:"access_key" reload:"live"`
	SecretKey Secret `yaml:"secret_key" reload:"live"`
	// PathStyle puts the bucket in the path instead of the host name.
	// Default true.
	PathStyle bool `yaml:"path_style"`
	// ChecksumTrailer sends uploads in aws-chunked framing with a CRC32
	// after the body, so that the store detects altered or truncated
	// bodies. "auto", the default, finds out whether the store supports
	// this.
	ChecksumTrailer string `yaml:"checksum_trailer" values:"auto true false"`
	// TruncatedUploads says what happens to uploads if the store neither
	// supports checksum trailers nor discards a body that was cut short:
	// "refuse" (default) or "accept".
	TruncatedUploads string `yaml:"truncated_uploads" values:"refuse accept"`
	// ETagPartCount means that the store's ETags of multipart objects end
	// in "-" and the number of parts. Without it, each size in a listing
	// needs a separate request. "auto", the default, finds out.
	ETagPartCount string `yaml:"etag_part_count" values:"auto true false"`
	// Keys says how the store treats object keys: "path" means like file
	// paths, "literal" means unchanged. If empty, the proxy finds out whether
	// the store takes a key for another one, and refuses keys with a "." or
	// ".." segment where prefixes matter.
	Keys string `yaml:"keys" values:"path literal"`
	// UniformParts means that the store requires all parts of an upload
	// except the last to have the same length. Such a store rejects the
	// part that the proxy appends to an object whose last part is shorter.
	// Default false.
	UniformParts bool `yaml:"uniform_parts"`
	// SSE asks for the store's own encryption. By default, requests ask for
	// none, and the default of the bucket applies.
	SSE SSE `yaml:"sse"`
	// CAFile is a PEM file with the certificate authorities for the store.
	// It is reloaded when it changes. Empty means the file in the
	// environment variable AWS_CA_BUNDLE, otherwise those of the system.
	CAFile string `yaml:"ca_file"`
	// ConnectTimeout limits connecting to the store, including the TLS
	// handshake. 100ms to 1m, default 5s.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// ResponseTimeout limits the time from the last byte of a request to
	// the first byte of the store's response. Server-side copies and
	// completions of multipart uploads may take ten times as long. 1s to
	// 1h, default 45s.
	ResponseTimeout time.Duration `yaml:"response_timeout"`
	// IdleTimeout limits the time without any byte from or to the store
	// during a request or a response. 1s to 1h, default 30s.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
}

// SSE is what the proxy asks of the store's own encryption when it writes an
// object, for buckets whose policy denies other writes.
type SSE struct {
	// Algorithm is sent as x-amz-server-side-encryption, except none, the
	// default.
	Algorithm string `yaml:"algorithm" values:"none AES256 aws:kms aws:kms:dsse"`
	// KeyID is the key in the store's KMS, for aws:kms and aws:kms:dsse. If
	// empty, the store chooses it.
	KeyID string `yaml:"key_id"`
	// BucketKey asks for an S3 Bucket Key, for aws:kms. Default false.
	BucketKey bool `yaml:"bucket_key"`
}

// Client is a user of the proxy. Its credentials are valid only at the
// proxy.
type Client struct {
	// Name identifies the client in rules, the audit log and metrics.
	// Unique.
	Name string `yaml:"name" config:"required"`
	// AccessKey and SecretKey are the client's credentials. The access key
	// must be unique, and the secret must have at least 8 characters. Both
	// are required, except for the anonymous client, which has none.
	AccessKey string `yaml:"access_key"`
	SecretKey Secret `yaml:"secret_key"`
	// Anonymous makes this the client of all unsigned requests. At most one
	// client can be anonymous. Default false. Without such a client,
	// unsigned requests are refused.
	Anonymous bool `yaml:"anonymous"`
	// Allow lists everything that the client may do.
	Allow []Grant `yaml:"allow" config:"required"`
}

// Grant allows actions on buckets.
type Grant struct {
	// Buckets are bucket names; "*" matches any run of characters.
	Buckets []string `yaml:"buckets" config:"required"`
	// Prefixes are literal prefixes of object keys. If there are none, or
	// one is empty, the grant covers all objects and the bucket itself.
	Prefixes []string `yaml:"prefixes"`
	// Actions are the allowed actions:
	//	read         get objects and their metadata
	//	write        put, copy to, upload
	//	delete       remove objects
	//	list         see buckets and the objects in them
	//	admin        create, delete and configure buckets
	//	lock         retain objects in COMPLIANCE mode
	//	store_admin  give others direct access to buckets in the store
	Actions []string `yaml:"actions" config:"required" values:"read write delete list admin lock store_admin"`
}

// Key is a key of a KMS. providerSettings lists the settings of each
// provider.
type Key struct {
	// Name identifies the key in rules. Unique.
	Name string `yaml:"name" config:"required"`
	// Provider is the kind of KMS. It determines which other settings
	// apply.
	Provider Provider `yaml:"provider" config:"required" values:"aws-kms vault-transit gcp-kms azure-keyvault pkcs11 local all-of any-of"`
	// KeyID identifies the key in the KMS, in the KMS's notation. For
	// pkcs11, it is the CKA_ID in hexadecimal. For aws-kms, vault-transit and
	// gcp-kms, it may be a template; see IsTemplate.
	KeyID string `yaml:"key_id"`
	// RoleARN is a role to assume for calls to the KMS. Empty means the
	// proxy's own identity.
	RoleARN string `yaml:"role_arn"`
	// ExternalID is sent with RoleARN, if the role's trust policy requires
	// it.
	ExternalID string `yaml:"external_id"`
	// Endpoint is the endpoint of the KMS: a URL for aws-kms, such as a VPC
	// endpoint; host and port for gcp-kms. Empty means the public endpoint.
	Endpoint string `yaml:"endpoint"`
	// Region is the region of the KMS. Empty means the region in the key's
	// ARN, otherwise the SDK's default.
	Region string `yaml:"region"`
	// AlsoKnownAs are ARNs of keys that KeyID referred to earlier or will
	// refer to later, for example because an alias moves. Objects under
	// these keys can be read, but no new objects are encrypted under them.
	AlsoKnownAs []string `yaml:"also_known_as"`
	// Insecure allows an http:// URL for a KMS on another machine. Anyone
	// on the network path can then read data keys. Default false.
	Insecure bool `yaml:"insecure"`
	// FIPS uses the region's FIPS endpoint.
	FIPS bool `yaml:"fips"`
	// Address is the URL of a Vault or OpenBao server.
	Address string `yaml:"address"`
	// Namespace is the Vault namespace of the mount and the login. Empty
	// means the root namespace.
	Namespace string `yaml:"namespace"`
	// Mount is the path of the transit engine. Empty means "transit".
	Mount string `yaml:"mount"`
	// Login says how to get a Vault token.
	Login Login `yaml:"login"`
	// CAFile is a PEM file with the certificate authorities for the KMS. It
	// is reloaded when it changes. Empty means those of the system; for
	// aws-kms, those in AWS_CA_BUNDLE.
	CAFile string `yaml:"ca_file"`
	// EnvelopeID is the key's id in the envelopes of objects. If empty, it
	// is derived from other settings; see docs/kms.md.
	EnvelopeID string `yaml:"envelope_id"`
	// Algorithm is the wrapping algorithm of an Azure key. Empty means
	// RSA-OAEP-256.
	Algorithm string `yaml:"algorithm" values:"RSA-OAEP-256 A256KW"`
	// Bindings are secrets wrapped by an Azure RSA key, as printed by
	// cmekproxy keys bind. Without bindings, anyone with the public key can
	// create objects that pass as genuine. New objects use the first
	// binding. Objects with any of the bindings can be read. Default none.
	Bindings []string `yaml:"bindings"`
	// WriteForm is the form of new blobs of an Azure key. Use 1 until all
	// proxies have its bindings. Default 2 with bindings, otherwise 1.
	WriteForm int `yaml:"write_form"`
	// AcceptForm is the lowest form of an Azure key's blobs that is
	// accepted. 2 refuses blobs without a binding. Default 1.
	AcceptForm int `yaml:"accept_form"`
	// Module is the path of the HSM vendor's PKCS #11 library.
	Module string `yaml:"module"`
	// Token is the label of the HSM's token, and KeyLabel the label of the
	// key in it (CKA_LABEL).
	Token    string `yaml:"token"`
	KeyLabel string `yaml:"key_label"`
	// PIN is the PIN of the token's user. Empty means no login.
	PIN Secret `yaml:"pin"`
	// KeyFile is the path of a file with the key. It may be a template; see
	// IsTemplate.
	KeyFile string `yaml:"key_file"`
	// Members are the names of two to four other keys that are used
	// together. With all-of, all of them must agree to each use. With
	// any-of, one is enough while no other one says no.
	Members []string `yaml:"members"`
	// RecoveryPublicKey is the public half of a recovery key, as printed by
	// cmekproxy recovery keygen. Data keys are wrapped to it as well, so
	// that its private half opens objects if the KMS key is lost. Empty
	// means none.
	RecoveryPublicKey string `yaml:"recovery_public_key"`
	// Timeout overrides KMS.Timeout. Parse always sets it. Not for local
	// keys.
	Timeout time.Duration `yaml:"timeout"`
}

// IsTogether reports whether the key consists of other keys.
func (k *Key) IsTogether() bool { return k.Provider == AllOf || k.Provider == AnyOf }

// Login says how to get a Vault token. Set exactly one of the four.
type Login struct {
	// Token is a token.
	Token Secret `yaml:"token"`
	// TokenFile is a file with a token, such as the sink of a Vault Agent.
	// It is read at each login.
	TokenFile string `yaml:"token_file"`
	// AppRole logs in with a role id and a secret id.
	AppRole AppRole `yaml:"approle"`
	// Kubernetes logs in with the pod's service account.
	Kubernetes Kubernetes `yaml:"kubernetes"`
}

// AppRole is a login with Vault's AppRole auth method.
type AppRole struct {
	RoleID string `yaml:"role_id"`
	// SecretID is the secret id, and SecretIDFile a file with it. Set one,
	// or neither if the role has no secret id.
	SecretID     Secret `yaml:"secret_id"`
	SecretIDFile string `yaml:"secret_id_file"`
	// Mount is the path of the auth method. Empty means "approle".
	Mount string `yaml:"mount"`
}

// Kubernetes is a login with Vault's Kubernetes auth method.
type Kubernetes struct {
	Role string `yaml:"role"`
	// TokenFile is the file with the service account's token. Empty means
	// the path where Kubernetes mounts it.
	TokenFile string `yaml:"token_file"`
	// Mount is the path of the auth method. Empty means "kubernetes".
	Mount string `yaml:"mount"`
}

// Provider is a kind of KMS.
type Provider string

// The providers.
const (
	AWSKMS        Provider = "aws-kms"
	VaultTransit  Provider = "vault-transit"
	GCPKMS        Provider = "gcp-kms"
	AzureKeyVault Provider = "azure-keyvault"
	PKCS11        Provider = "pkcs11"
	Local         Provider = "local"
	AllOf         Provider = "all-of"
	AnyOf         Provider = "any-of"
)

// providerSettings lists the settings that a key of each provider needs,
// and the optional ones. Every key may have a recovery_public_key.
var providerSettings = map[Provider]struct{ needs, takes []string }{
	AWSKMS: {
		[]string{"key_id"},
		[]string{
			"role_arn", "external_id", "endpoint", "insecure", "region", "fips", "also_known_as", "ca_file", "timeout",
		},
	},
	VaultTransit: {
		[]string{"address", "key_id", "login"},
		[]string{"insecure", "namespace", "mount", "ca_file", "envelope_id", "timeout"},
	},
	GCPKMS: {[]string{"key_id"}, []string{"endpoint", "ca_file", "timeout"}},
	AzureKeyVault: {
		[]string{"key_id"},
		[]string{"algorithm", "bindings", "write_form", "accept_form", "envelope_id", "ca_file", "timeout"},
	},
	PKCS11: {[]string{"module", "token", "key_label"}, []string{"key_id", "pin", "timeout"}},
	Local:  {[]string{"key_file"}, nil},
	AllOf:  {[]string{"members"}, nil},
	AnyOf:  {[]string{"members"}, nil},
}

// Encryption determines which key protects which object.
type Encryption struct {
	// Rules are tried in order, and the first match decides. A request
	// without a match is refused.
	Rules []Rule `yaml:"rules" config:"required" reload:"live"`
	// PlaintextObjects is the default for rules. Deny or Allow, default
	// Deny.
	PlaintextObjects string `yaml:"plaintext_objects" values:"deny allow" reload:"live"`
	// CustomerKeys is the default for rules. Deny or Allow, default Deny.
	CustomerKeys string `yaml:"customer_keys" values:"deny allow" reload:"live"`
	// FormatVersion is the version of the object format that is written: 1
	// or 2, default 2.
	FormatVersion int `yaml:"format_version" reload:"live"`
	// VerifyHead makes HEAD verify an object's MAC even if that requires
	// asking the KMS. Default false: the MAC is verified only if the key is
	// cached.
	VerifyHead bool `yaml:"verify_head" reload:"live"`
	// BucketDefaultsFile is the path of a file for the keys that clients
	// choose for buckets. If empty, clients cannot choose.
	BucketDefaultsFile string `yaml:"bucket_defaults_file" reload:"restart"`
}

// Rule determines the key for some objects. Conditions that are not set
// match everything.
type Rule struct {
	// Buckets are bucket names; "*" matches any run of characters.
	Buckets []string `yaml:"buckets" config:"required"`
	// Prefixes are literal prefixes of object keys.
	Prefixes []string `yaml:"prefixes"`
	// Clients are names of clients.
	Clients []string `yaml:"clients"`
	// Key is the name of the key. Required without Tenants.
	Key string `yaml:"key"`
	// Tenants gives the objects to the tenants of TenantsDir, each with its
	// own key, instead of Key. No other rule applies to these objects, and
	// those that no tenant has are refused. Default false.
	Tenants bool `yaml:"tenants"`
	// PlaintextObjects overrides Encryption.PlaintextObjects. Parse always
	// sets it.
	PlaintextObjects string `yaml:"plaintext_objects" values:"deny allow"`
	// AllowedKeys are names of keys that clients may request instead of
	// Key; "*" matches any run of characters. If empty, only Key is
	// allowed.
	AllowedKeys []string `yaml:"allowed_keys"`
	// ReadKeys are names of additional keys, with "*" as above. All clients
	// can read objects under these keys, but no new objects are encrypted
	// under them.
	ReadKeys []string `yaml:"read_keys"`
	// CustomerKeys overrides Encryption.CustomerKeys. Parse always sets it.
	CustomerKeys string `yaml:"customer_keys" values:"deny allow"`
	// SealMetadata hides the metadata of new objects from the store. Default
	// false.
	SealMetadata bool `yaml:"seal_metadata"`
	// DEKReuse makes objects share data keys. The zero value gives each
	// object its own.
	DEKReuse DEKReuse `yaml:"dek_reuse"`
}

// DEKReuse limits how many new objects share one data key of the KMS. After
// Parse, either all fields are set or none.
type DEKReuse struct {
	// MaxAge is above 0 and at most 24h. There is no default.
	MaxAge time.Duration `yaml:"max_age"`
	// MaxObjects is 1 or more, default 100000.
	MaxObjects int `yaml:"max_objects"`
	// MaxBytes is the limit on plaintext bytes. 1 or more, default 1 TiB.
	MaxBytes int `yaml:"max_bytes"`
}

// The values of PlaintextObjects and CustomerKeys.
const (
	Deny  = "deny"
	Allow = "allow"
)

// The values of Log.Access.
const (
	On  = "on"
	Off = "off"
)

// The values of Origin.ChecksumTrailer and Origin.ETagPartCount.
const (
	Auto = "auto" // find out what the store does
	Yes  = "true"
	No   = "false"
)

// The values of Origin.TruncatedUploads.
const (
	Refuse = "refuse"
	Accept = "accept"
)

// Required is a value of ProxyProtocol. The other one is Off.
const Required = "required"

// The values of Origin.Keys.
const (
	PathKeys    = string(keyname.Path)
	LiteralKeys = string(keyname.Literal)
)

// DEKCache limits how long an unwrapped data key (DEK) may be used.
type DEKCache struct {
	// TTL is how long a DEK may be used, counted from when the KMS was
	// asked for it. It limits how long a revocation takes. Above 0, at most
	// 24h. Default 5m.
	TTL time.Duration `yaml:"ttl"`
	// MaxEntries is the maximum number of cached DEKs. Default 100000.
	MaxEntries int `yaml:"max_entries"`
	// RevocationProbe is how often the KMS is asked about each key in use,
	// to detect a revocation before the TTL ends. 0 disables it; otherwise
	// it must be shorter than TTL. Default 10s, or 0 if that is not shorter
	// than TTL.
	RevocationProbe time.Duration `yaml:"revocation_probe"`
	// OutageWait is how long a transfer waits for an unreachable KMS after
	// the TTL of its DEK has ended. No byte is sent meanwhile. 0 disables
	// waiting; otherwise it must be shorter than Limits.IdleTimeout.
	// Default 30s.
	OutageWait time.Duration `yaml:"outage_wait"`
}

// KMS limits the calls to a KMS, separately for each key, and sets their
// price.
type KMS struct {
	// MaxConcurrent limits concurrent calls. 1 to 10000, default 64.
	MaxConcurrent int `yaml:"max_concurrent"`
	// MaxPerSecond limits the sustained rate of calls. 1 to 100000, default
	// 1000. Not for local keys.
	MaxPerSecond int `yaml:"max_per_second"`
	// Timeout limits one attempt at a call, and the answer to a revocation
	// probe. Logins do not count. A call retries for up to three times this
	// long. 100ms to 30s, default 2s.
	Timeout time.Duration `yaml:"timeout"`
	// MaxOpenKeys limits how many keys of templates are open at once, for all
	// templates together. 1 to 100000, default 1000.
	MaxOpenKeys int `yaml:"max_open_keys"`
	// PricePer10000 is the price of 10,000 calls in Currency, for the TTL
	// advisor. Default 0.03 USD, the price of AWS KMS.
	PricePer10000 float64 `yaml:"price_per_10000"`
	Currency      string  `yaml:"currency"`
}

// Log configures logging.
type Log struct {
	// Level is the lowest level that is logged: debug, info, warn or error.
	// Default info.
	Level string `yaml:"level" values:"debug info warn error"`
	// Access says which requests that succeed have a line in the log: On, Off,
	// or one in this many, 2 to 1000000. Those that fail always have one.
	// Default On.
	Access string `yaml:"access"`
}

// AccessEvery returns Access as a number: one in so many requests that succeed
// has a line, or none if it is 0.
func (l *Log) AccessEvery() (n int, ok bool) {
	switch l.Access {
	case On, "":
		return 1, true
	case Off:
		return 0, true
	}
	n, err := strconv.Atoi(l.Access)
	return n, err == nil && n >= 2 && n <= 1_000_000
}

// Audit configures the audit log of each use of a key: a file, standard
// output, or none. A use that cannot be recorded is refused.
type Audit struct {
	// File is the path of the audit log. Empty means no file.
	File string `yaml:"file"`
	// Stdout writes the audit log to standard output. It cannot be combined
	// with File. Default false.
	Stdout bool `yaml:"stdout"`
	// MaxSizeMB is the size in MiB at which the file is renamed and a new
	// one started. 0 means no limit, for use with an external log rotation.
	// At most 1000000, default 100.
	MaxSizeMB int `yaml:"max_size_mb"`
	// MaxAgeDays is how many days renamed files are kept. 0, the default,
	// means forever. At most 36500.
	MaxAgeDays int `yaml:"max_age_days"`
	// MaxFiles is how many renamed files are kept. 0, the default, means
	// all. At most 100000.
	MaxFiles int `yaml:"max_files"`
}

// Tracing sends spans to a receiver of OpenTelemetry. Environment variables
// such as OTEL_EXPORTER_OTLP_ENDPOINT have no effect.
type Tracing struct {
	// Endpoint is the base URL of a receiver of OTLP over HTTP; spans go to
	// /v1/traces below it. Empty, the default, turns tracing off.
	Endpoint string `yaml:"endpoint"`
	// Insecure allows an http:// URL on another machine. Default false.
	Insecure bool `yaml:"insecure"`
	// CAFile is a PEM file with the certificate authorities for the
	// receiver. It is reloaded when it changes. Empty means those of the
	// system.
	CAFile string `yaml:"ca_file"`
	// Headers are sent to the receiver. At most 20.
	Headers []TracingHeader `yaml:"headers" reload:"live"`
	// SamplingRatio is the part of the requests that is recorded: above 0,
	// at most 1, default 0.01.
	SamplingRatio float64 `yaml:"sampling_ratio"`
	// ServiceName is the name of the service in spans. Default cmekproxy.
	ServiceName string `yaml:"service_name"`
	// ObjectKeys puts object keys into spans. Default false.
	ObjectKeys bool `yaml:"object_keys"`
}

// TracingHeader is a header for the receiver.
type TracingHeader struct {
	Name  string `yaml:"name" config:"required"`
	Value Secret `yaml:"value" config:"required"`
}

// Metrics adds metrics whose number depends on the load.
type Metrics struct {
	// Clients and Buckets are how many clients and buckets have their own
	// counters of requests and bytes. Further ones share a label. 0 to
	// 10000. 0, the default, means no such counters.
	Clients int `yaml:"clients"`
	Buckets int `yaml:"buckets"`
}

// Limits protect the proxy from its clients. None of them can be disabled.
type Limits struct {
	// HeaderTimeout limits how long a client may take to send the header of
	// a request. 100ms to 10m, default 10s.
	HeaderTimeout time.Duration `yaml:"header_timeout" reload:"restart"`
	// IdleTimeout ends a request if the client neither sends nor receives a
	// byte for this long while the proxy waits for it. 1s to 24h, default
	// 2m. Origin has a separate timeout for the store.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// MaxConcurrentRequests limits concurrent requests; further ones get
	// SlowDown. 1 to 1000000, default 1024.
	MaxConcurrentRequests int `yaml:"max_concurrent_requests"`
	// MaxConcurrentPerClient limits the concurrent requests of one client.
	// 0 to MaxConcurrentRequests. 0, the default, means three quarters of
	// that, or all of it if there is only one client.
	MaxConcurrentPerClient int `yaml:"max_concurrent_per_client"`
	// MaxConcurrentUnsigned limits how many requests that are not yet
	// authenticated may do expensive work at once, in addition to
	// MaxConcurrentRequests. 0 to MaxConcurrentRequests. 0, the default,
	// means a sixteenth of that.
	MaxConcurrentUnsigned int `yaml:"max_concurrent_unsigned"`
	// Memory is how much memory the process should use; requests that would
	// need more get SlowDown. 0, or 64MiB or more. 0, the default, means
	// GOMEMLIMIT, or nine tenths of the limit of the control group, or any
	// amount if there is neither.
	Memory Bytes `yaml:"memory"`
	// MaxConnections limits open connections of the S3 port; further ones
	// wait. 0 to 4000000. 0, the default, means four times
	// MaxConcurrentRequests.
	MaxConnections int `yaml:"max_connections"`
	// MinBytesPerSecond is the minimum mean rate of a client while the
	// proxy waits for it, enforced after IdleTimeout of waiting. 1 to
	// 1000000000, default 1024.
	MinBytesPerSecond int64 `yaml:"min_bytes_per_second"`
	// ShutdownGrace is how long running requests may continue after a
	// signal to stop. 0 ends them at once. At most 1h, default 30s.
	ShutdownGrace time.Duration `yaml:"shutdown_grace"`
	// ShutdownDelay is how long the S3 port keeps accepting requests after
	// a SIGTERM while /readyz returns 503, so that load balancers can
	// remove the proxy before it refuses connections. It is a part of
	// ShutdownGrace and cannot exceed it. Default 5s, or ShutdownGrace if
	// that is shorter. 0 means no delay.
	ShutdownDelay time.Duration `yaml:"shutdown_delay"`
}

// defaults returns the Config with all defaults.
func defaults() *Config {
	return &Config{
		AdminListen:   "127.0.0.1:9001",
		ProxyProtocol: Off,
		Origin: Origin{
			PathStyle: true, ChecksumTrailer: Auto, TruncatedUploads: Refuse, ETagPartCount: Auto,
			SSE:            SSE{Algorithm: "none"},
			ConnectTimeout: 5 * time.Second, ResponseTimeout: 45 * time.Second, IdleTimeout: 30 * time.Second,
		},
		Encryption: Encryption{PlaintextObjects: Deny, CustomerKeys: Deny, FormatVersion: 2},
		DEKCache: DEKCache{
			TTL: 5 * time.Minute, MaxEntries: 100_000, RevocationProbe: 10 * time.Second, OutageWait: 30 * time.Second,
		},
		KMS: KMS{
			MaxConcurrent: 64, MaxPerSecond: 1000, Timeout: 2 * time.Second, MaxOpenKeys: 1000,
			PricePer10000: 0.03, Currency: "USD",
		},
		Log:     Log{Level: "info", Access: On},
		Audit:   Audit{MaxSizeMB: 100},
		Tracing: Tracing{SamplingRatio: 0.01, ServiceName: "cmekproxy"},
		Limits: Limits{
			HeaderTimeout:         10 * time.Second,
			IdleTimeout:           2 * time.Minute,
			MaxConcurrentRequests: 1024,
			MinBytesPerSecond:     1024,
			ShutdownGrace:         30 * time.Second,
			ShutdownDelay:         5 * time.Second,
		},
	}
}
