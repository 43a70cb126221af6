package config

import (
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

// Config is the whole file. A field's yaml tag is its key, and its values tag
// is all that it can be. One whose config tag says "required" must be there
// and must not be empty; the others may be left out, and then have the value
// of defaults. One whose scope tag says "server" is for the server alone, and
// ParseOffline skips it.
type Config struct {
	// Listen is the address of the S3 port, as HOST:PORT; an empty host is
	// every interface.
	Listen string `yaml:"listen" scope:"server" config:"required"`
	// AdminListen is the address of /admin, as HOST:PORT, and of /healthz,
	// /readyz and /metrics unless they have their own. Default 127.0.0.1:9001.
	AdminListen string `yaml:"admin_listen" scope:"server"`
	// HealthListen is the address of /healthz and /readyz, and MetricsListen
	// that of /metrics. Empty: AdminListen. Two of the three may be the same.
	HealthListen  string `yaml:"health_listen" scope:"server"`
	MetricsListen string `yaml:"metrics_listen" scope:"server"`
	// AdminToken is what requests to /admin must bring as a bearer token. 16
	// characters or more. Empty: /admin works on loopback only.
	AdminToken Secret `yaml:"admin_token" scope:"server"`
	// Domain is the base domain of virtual-host-style requests: with
	// s3.example.com, a request for photos.s3.example.com is for the bucket
	// photos. Empty: path-style requests only.
	Domain string `yaml:"domain" scope:"server"`
	// TLS serves the S3 port over TLS. Left out: plain HTTP.
	TLS TLS `yaml:"tls" scope:"server"`
	// Origin is the store behind the proxy.
	Origin Origin `yaml:"origin" config:"required"`
	// Clients are those who may use the proxy. At least one.
	Clients []Client `yaml:"clients" scope:"server" config:"required"`
	// SessionCredentialsFile is a JSON file of temporary credentials, each of
	// which stands for one of Clients. It is read again when it changes.
	// Empty: there are none.
	SessionCredentialsFile string `yaml:"session_credentials_file" scope:"server"`
	// Keys are the KMS keys that rules can name. At least one.
	Keys []Key `yaml:"keys" config:"required"`
	// Encryption says which key protects which object.
	Encryption Encryption `yaml:"encryption" config:"required"`
	// DEKCache bounds how long an unwrapped data key (DEK) may be used.
	DEKCache DEKCache `yaml:"dek_cache"`
	// KMS bounds what is asked of a KMS.
	KMS KMS `yaml:"kms"`
	// Log says what is logged.
	Log Log `yaml:"log" scope:"server"`
	// Audit is where each use of a key is written down. Left out: nowhere.
	Audit Audit `yaml:"audit" scope:"server"`
	// Limits protect the proxy from its clients.
	Limits Limits `yaml:"limits" scope:"server"`
}

// TLS is the certificate of the S3 port. All paths empty: no TLS.
type TLS struct {
	// CertFile and KeyFile are PEM files. Both or none.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile is a PEM file of certificate authorities. Set: a client
	// must show a certificate of one of them, on top of its signature.
	ClientCAFile string `yaml:"client_ca_file"`
	// EndsOnThisMachine says that something else on this machine ends TLS for
	// clients, and passes requests on over loopback: they then count as secure,
	// which SSE-C needs. Default false.
	EndsOnThisMachine bool `yaml:"ends_on_this_machine"`
}

// Origin is the store behind the proxy.
type Origin struct {
	// Endpoint is the URL of the store: http or https, host and port, no path.
	Endpoint string `yaml:"endpoint" config:"required"`
	// Region is what requests to the store are signed for.
	Region string `yaml:"region" config:"required"`
	// AccessKey and SecretKey are the proxy's own credentials at the store.
	// Both or none; none is the AWS SDK's default credential chain.
	AccessKey string `yaml:"access_key"`
	SecretKey Secret `yaml:"secret_key"`
	// PathStyle puts the bucket in the path and not in the host name. Default
	// true.
	PathStyle bool `yaml:"path_style"`
	// ChecksumTrailer sends uploads in aws-chunked framing with a CRC32 behind
	// the body, by which the store finds bodies that were altered or cut on
	// the way. Default true. False: for a store that does not know it.
	ChecksumTrailer bool `yaml:"checksum_trailer"`
	// ETagPartCount says that the store's ETags of multipart objects end in
	// "-" and the number of parts, so that sizes in listings need no request
	// of their own. Default true.
	ETagPartCount bool `yaml:"etag_part_count"`
	// Keys says how the store takes the keys of objects: Path, as paths of
	// files, or Literal, as they are. Empty: nobody has said, and keys with a
	// segment . or .. are refused where a prefix decides anything.
	Keys string `yaml:"keys" values:"path literal"`
	// UniformParts says that the store wants all parts of an upload but the
	// last to be of one length, and so does not take the part that would end
	// an object whose last part is shorter than the others. Default false.
	UniformParts bool `yaml:"uniform_parts"`
	// CAFile is a PEM file of the authorities that sign the store's
	// certificate. It is read again when it changes. Empty: the file that the
	// environment variable AWS_CA_BUNDLE names, else those of the system.
	CAFile string `yaml:"ca_file"`
	// ConnectTimeout is how long a connection to the store may take, TLS
	// handshake included. 100ms to 1m, default 5s.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// ResponseTimeout is how long the store may take from the last byte of a
	// request to the first of its answer. A server-side copy and the
	// completion of a multipart upload may take ten times as long. 1s to 1h,
	// default 45s.
	ResponseTimeout time.Duration `yaml:"response_timeout"`
	// IdleTimeout is how long the store may move no byte, while a request is
	// sent to it or an answer of it is read. 1s to 1h, default 30s.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
}

// Client is one who may use the proxy, with credentials that are the proxy's
// own.
type Client struct {
	// Name stands for the client in rules, the audit log and metrics. Unique.
	Name string `yaml:"name" config:"required"`
	// AccessKey and SecretKey are the client's credentials. The access key is
	// unique; the secret has 8 characters or more. Both are required, but for
	// the anonymous client, who has none.
	AccessKey string `yaml:"access_key"`
	SecretKey Secret `yaml:"secret_key"`
	// Anonymous is the client for all requests that are not signed. One at
	// most. Default false; with no such client, these are refused.
	Anonymous bool `yaml:"anonymous"`
	// Allow is all that the client may do.
	Allow []Grant `yaml:"allow" config:"required"`
}

// Grant allows actions on buckets.
type Grant struct {
	// Buckets are names in which * stands for any run of characters.
	Buckets []string `yaml:"buckets" config:"required"`
	// Prefixes are beginnings of object keys, taken literally. Left out, or
	// with an empty one: all objects, and the bucket itself.
	Prefixes []string `yaml:"prefixes"`
	// Actions are what the client may do there:
	//   read    object data and metadata
	//   write   put, copy to, upload
	//   delete  objects
	//   list    buckets and what is in them
	//   admin   create, delete and configure buckets
	//   lock    keep objects in COMPLIANCE mode
	//   store_admin  open buckets to others than the proxy
	Actions []string `yaml:"actions" config:"required" values:"read write delete list admin lock store_admin"`
}

// Key is one key of a KMS. Which fields belong to which provider is in
// providerSettings.
type Key struct {
	// Name stands for the key in rules. Unique.
	Name string `yaml:"name" config:"required"`
	// Provider is the kind of KMS, and decides which of the other fields
	// belong.
	Provider Provider `yaml:"provider" config:"required" values:"aws-kms vault-transit gcp-kms azure-keyvault pkcs11 local"`
	// KeyID is the key in the KMS, in the KMS's own way. For pkcs11, the
	// CKA_ID in hexadecimal.
	KeyID string `yaml:"key_id"`
	// RoleARN is a role to assume for calls to the KMS. Empty: the proxy's own
	// identity.
	RoleARN string `yaml:"role_arn"`
	// ExternalID goes with RoleARN, where the role's trust policy asks for one.
	ExternalID string `yaml:"external_id"`
	// Endpoint is that of the KMS: a URL for aws-kms, such as a VPC endpoint;
	// host and port for gcp-kms. Empty: the public one.
	Endpoint string `yaml:"endpoint"`
	// Region is the region of the KMS. Empty: that of the key's ARN, else the
	// SDK's default.
	Region string `yaml:"region"`
	// AlsoKnownAs are the ARNs of keys that KeyID has named before, or is going
	// to name, such as an alias that is moved. What is under them is opened,
	// and nothing new is put under them.
	AlsoKnownAs []string `yaml:"also_known_as"`
	// Insecure allows an http:// URL for a KMS on another machine: whoever is
	// between sees data keys. Default false.
	Insecure bool `yaml:"insecure"`
	// FIPS uses the region's FIPS endpoint.
	FIPS bool `yaml:"fips"`
	// Address is the URL of a Vault or OpenBao server.
	Address string `yaml:"address"`
	// Namespace is that of mount and login. Empty: the root namespace.
	Namespace string `yaml:"namespace"`
	// Mount is the path of the transit engine. Empty: transit.
	Mount string `yaml:"mount"`
	// Login is how the proxy gets a Vault token.
	Login Login `yaml:"login"`
	// CAFile is a PEM file of the authorities that sign the KMS's certificate.
	// It is read again when it changes. Empty: those of the system; for
	// aws-kms, those that AWS_CA_BUNDLE names.
	CAFile string `yaml:"ca_file"`
	// EnvelopeID is the key's id in the envelopes of objects. Empty: made of
	// the other settings, see docs/kms.md.
	EnvelopeID string `yaml:"envelope_id"`
	// Algorithm is how an Azure key wraps. Empty: RSA-OAEP-256.
	Algorithm string `yaml:"algorithm" values:"RSA-OAEP-256 A256KW"`
	// Bindings are secrets of an Azure RSA key, wrapped by it, as cmekproxy
	// keys bind prints them. Without, whoever has the public key can make
	// objects that are taken for genuine. The first one binds new objects;
	// those that any of them binds are opened. Default none.
	Bindings []string `yaml:"bindings"`
	// WriteForm is the form of new blobs of an Azure key. 1, until all proxies
	// have its bindings. Default 2 with bindings, else 1.
	WriteForm int `yaml:"write_form"`
	// AcceptForm is the least form of an Azure key's blobs that is opened. 2
	// refuses all that no binding binds. Default 1.
	AcceptForm int `yaml:"accept_form"`
	// Module is the path of the HSM vendor's PKCS#11 library.
	Module string `yaml:"module"`
	// Token is the label of the HSM's token, KeyLabel that of the key in it
	// (CKA_LABEL).
	Token    string `yaml:"token"`
	KeyLabel string `yaml:"key_label"`
	// PIN is that of the token's user. Empty: no login.
	PIN Secret `yaml:"pin"`
	// KeyFile is the path of a file that holds the key.
	KeyFile string `yaml:"key_file"`
	// Timeout overrides KMS.Timeout. Never 0 after Parse. Not for local keys.
	Timeout time.Duration `yaml:"timeout"`
}

// Login is how the proxy gets a Vault token. Exactly one of the four.
type Login struct {
	// Token is a token.
	Token Secret `yaml:"token"`
	// TokenFile holds one, such as a Vault Agent's sink. It is read again at
	// each login.
	TokenFile string `yaml:"token_file"`
	// AppRole logs in with a role id and a secret id.
	AppRole AppRole `yaml:"approle"`
	// Kubernetes logs in with the pod's service account.
	Kubernetes Kubernetes `yaml:"kubernetes"`
}

// AppRole is a login by Vault's auth method of that name.
type AppRole struct {
	RoleID string `yaml:"role_id"`
	// SecretID, or a file that holds it. One of them, or none where the role
	// has no secret.
	SecretID     Secret `yaml:"secret_id"`
	SecretIDFile string `yaml:"secret_id_file"`
	// Mount is the path of the auth method. Empty: approle.
	Mount string `yaml:"mount"`
}

// Kubernetes is a login by Vault's auth method of that name.
type Kubernetes struct {
	Role string `yaml:"role"`
	// TokenFile is the service account's token. Empty: where Kubernetes puts
	// it.
	TokenFile string `yaml:"token_file"`
	// Mount is the path of the auth method. Empty: kubernetes.
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
)

// providerSettings are the settings that a key of each provider needs, and
// those that it may have besides.
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
}

// Encryption says which key protects which object.
type Encryption struct {
	// Rules are tried in order: the first that matches decides, and a request
	// that none matches is refused.
	Rules []Rule `yaml:"rules" config:"required"`
	// PlaintextObjects is for rules that do not say. Deny or Allow, default
	// Deny.
	PlaintextObjects string `yaml:"plaintext_objects" values:"deny allow"`
	// CustomerKeys is for rules that do not say. Deny or Allow, default Deny.
	CustomerKeys string `yaml:"customer_keys" values:"deny allow"`
	// VerifyHead has a HEAD of an object verify its MAC, which asks the KMS
	// for a key that is not in the cache. Default false: the MAC is verified
	// if the key is in the cache.
	VerifyHead bool `yaml:"verify_head"`
	// BucketDefaultsFile is the path of a file that keeps the keys which
	// clients choose for buckets. Empty: they cannot.
	BucketDefaultsFile string `yaml:"bucket_defaults_file"`
}

// Rule names the key for some objects. Conditions that are left out match
// everything.
type Rule struct {
	// Buckets are names in which * stands for any run of characters.
	Buckets []string `yaml:"buckets" config:"required"`
	// Prefixes are beginnings of object keys, taken literally.
	Prefixes []string `yaml:"prefixes"`
	// Clients are names of clients.
	Clients []string `yaml:"clients"`
	// Key is the name of the key.
	Key string `yaml:"key" config:"required"`
	// PlaintextObjects overrides Encryption.PlaintextObjects. Never empty
	// after Parse.
	PlaintextObjects string `yaml:"plaintext_objects" values:"deny allow"`
	// AllowedKeys are names of keys, in which * stands for any run of
	// characters, that clients may ask for in place of Key. Empty: Key alone.
	AllowedKeys []string `yaml:"allowed_keys"`
	// ReadKeys are names of keys, in the same form, that objects may be under
	// besides Key and AllowedKeys: they can be read, whatever the client, and
	// nothing new is put under these keys.
	ReadKeys []string `yaml:"read_keys"`
	// CustomerKeys overrides Encryption.CustomerKeys. Never empty after Parse.
	CustomerKeys string `yaml:"customer_keys" values:"deny allow"`
	// DEKReuse has objects share data keys. The zero value: each has one of
	// its own.
	DEKReuse DEKReuse `yaml:"dek_reuse"`
}

// DEKReuse bounds how long new objects are put under one data key of the KMS.
// After Parse, all are set or none.
type DEKReuse struct {
	// MaxAge is above 0 and at most 24h. There is no default.
	MaxAge time.Duration `yaml:"max_age"`
	// MaxObjects is 1 or more, default 100000.
	MaxObjects int `yaml:"max_objects"`
	// MaxBytes of plaintext is 1 or more, default 1 TiB.
	MaxBytes int `yaml:"max_bytes"`
}

// The values of PlaintextObjects and CustomerKeys.
const (
	Deny  = "deny"
	Allow = "allow"
)

// The values of Origin.Keys.
const (
	PathKeys    = string(keyname.Path)
	LiteralKeys = string(keyname.Literal)
)

// DEKCache bounds how long an unwrapped data key (DEK) may be used.
type DEKCache struct {
	// TTL is the longest use of a DEK, counted from the moment the KMS was
	// asked for it; the revocation window. Above 0, at most 24h. Default 5m.
	TTL time.Duration `yaml:"ttl"`
	// MaxEntries is how many DEKs are kept at most. Default 100000.
	MaxEntries int `yaml:"max_entries"`
	// RevocationProbe is how often the KMS is asked about each key in use, so
	// that a revocation is noticed before the TTL. 0 is never; else shorter
	// than TTL. Default 10s, or 0 when that is not shorter than TTL.
	RevocationProbe time.Duration `yaml:"revocation_probe"`
	// OutageWait is how long a running transfer waits for a KMS that cannot be
	// reached, when the TTL of its DEK has ended. No byte passes meanwhile. 0
	// is not at all; else shorter than Limits.IdleTimeout. Default 30s.
	OutageWait time.Duration `yaml:"outage_wait"`
}

// KMS bounds what is asked of a KMS, for each key by itself, and says what it
// costs.
type KMS struct {
	// MaxConcurrent is how many calls run at a time. 1 to 10000, default 64.
	MaxConcurrent int `yaml:"max_concurrent"`
	// MaxPerSecond is how many calls are made in a second, in the long run. 1
	// to 100000, default 1000. Not for local keys.
	MaxPerSecond int `yaml:"max_per_second"`
	// Timeout bounds one attempt at a call, and the answer to a revocation
	// probe. A login or a token is no part of it. A call makes attempts until
	// three times as long have passed. 100ms to 30s, default 2s.
	Timeout time.Duration `yaml:"timeout"`
	// PricePer10000 is what 10,000 calls cost, in Currency, for the TTL
	// advisor. Default 0.03 and USD, as AWS KMS has it.
	PricePer10000 float64 `yaml:"price_per_10000"`
	Currency      string  `yaml:"currency"`
}

// Log says what is logged.
type Log struct {
	// Level is the least severe level that is logged: debug, info, warn or
	// error. Default info.
	Level string `yaml:"level" values:"debug info warn error"`
}

// Audit is where each use of a key is written down: to a file, to standard
// output, or nowhere. A use that cannot be written down is refused.
type Audit struct {
	// File is the path of the audit log. Empty: none.
	File string `yaml:"file"`
	// Stdout writes it to standard output. It goes with no File. Default false.
	Stdout bool `yaml:"stdout"`
	// MaxSizeMB is the size of a file in MiB, beyond which it is renamed and
	// another one begun. 0 is no bound, for files that somebody else renames;
	// at most 1000000, default 100.
	MaxSizeMB int `yaml:"max_size_mb"`
	// MaxAgeDays is for how many days a renamed file is kept. 0, the default,
	// is for ever; at most 36500.
	MaxAgeDays int `yaml:"max_age_days"`
	// MaxFiles is how many renamed files are kept. 0, the default, is all of
	// them; at most 100000.
	MaxFiles int `yaml:"max_files"`
}

// Limits protect the proxy from its clients. None can be switched off.
type Limits struct {
	// HeaderTimeout is how long a client may take to send a request's header.
	// 100ms to 10m, default 10s.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// IdleTimeout ends a request whose client neither sends nor takes a byte
	// for that long, while the proxy waits for it. 1s to 24h, default 2m.
	// Origin has its own for the store.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// MaxConcurrentRequests is how many requests are served at once; those
	// above it are told to slow down. 1 to 1000000, default 1024.
	MaxConcurrentRequests int `yaml:"max_concurrent_requests"`
	// MaxConcurrentPerClient is how many of those one client may have. 0 to
	// MaxConcurrentRequests; 0, the default, is three quarters of it, or all
	// where there is one client only.
	MaxConcurrentPerClient int `yaml:"max_concurrent_per_client"`
	// MaxConcurrentUnsigned is how many requests may do more than arithmetic
	// at once before they are authenticated, beside MaxConcurrentRequests. 0
	// to MaxConcurrentRequests; 0, the default, is a sixteenth of it.
	MaxConcurrentUnsigned int `yaml:"max_concurrent_unsigned"`
	// MinBytesPerSecond is what a client must move on average in the time for
	// which it is waited for, once that is IdleTimeout. 1 to 1000000000,
	// default 1024.
	MinBytesPerSecond int64 `yaml:"min_bytes_per_second"`
	// ShutdownGrace is how long running requests may go on after a signal to
	// stop. 0 cuts them at once; at most 1h, default 30s.
	ShutdownGrace time.Duration `yaml:"shutdown_grace"`
	// ShutdownDelay is how long the S3 port still answers after a SIGTERM,
	// while /readyz is 503, so that load balancers can take the proxy out
	// before it refuses a connection. It is a part of ShutdownGrace, and at
	// most that. Default 5s, or ShutdownGrace if that is shorter. 0 is not at
	// all.
	ShutdownDelay time.Duration `yaml:"shutdown_delay"`
}

// defaults is the Config of a file that says only what it must.
func defaults() *Config {
	return &Config{
		AdminListen: "127.0.0.1:9001",
		Origin: Origin{
			PathStyle: true, ChecksumTrailer: true, ETagPartCount: true,
			ConnectTimeout: 5 * time.Second, ResponseTimeout: 45 * time.Second, IdleTimeout: 30 * time.Second,
		},
		Encryption: Encryption{PlaintextObjects: Deny, CustomerKeys: Deny},
		DEKCache: DEKCache{
			TTL: 5 * time.Minute, MaxEntries: 100_000, RevocationProbe: 10 * time.Second, OutageWait: 30 * time.Second,
		},
		KMS: KMS{
			MaxConcurrent: 64, MaxPerSecond: 1000, Timeout: 2 * time.Second, PricePer10000: 0.03, Currency: "USD",
		},
		Log:   Log{Level: "info"},
		Audit: Audit{MaxSizeMB: 100},
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
