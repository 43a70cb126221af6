package main

import (
	"bytes"
	_ "embed" // for the template
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// minimal is a minimal configuration, as `cmekproxy init` writes and
// `cmekproxy config example` prints.
type minimal struct {
	Listen, AdminListen string
	Endpoint, Region    string
	// OriginAccessKey and OriginSecret are empty for the AWS SDK's default
	// chain. Secrets are references to a file or the environment.
	OriginAccessKey, OriginSecret string
	ClientAccessKey, ClientSecret string
	Buckets                       []string
	Provider                      config.Provider
	Key                           map[string]string // settings of the key, by name
}

// keySetting is a setting of a key that a minimal configuration has.
type keySetting struct{ name, flag, question, example string }

// kmsKind describes the keys of a provider in a minimal configuration.
type kmsKind struct {
	provider config.Provider
	alias    string // another name for --provider
	comment  string // what the key needs
	settings []keySetting
}

// kmsKinds are the providers in the order in which init offers them.
var kmsKinds = []kmsKind{
	{
		config.AWSKMS, "aws",
		"The proxy's AWS identity needs kms:GenerateDataKey, kms:Encrypt, kms:Decrypt\n" +
			"and kms:DescribeKey on this key.",
		[]keySetting{{
			"key_id", "key", "ARN, id or alias of the key",
			"arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		}},
	},
	{
		config.GCPKMS, "gcp",
		"The application default credentials need the role\nroles/cloudkms.cryptoKeyEncrypterDecrypter on this key.",
		[]keySetting{{
			"key_id", "key", "Resource name of the key, without a version",
			"projects/P/locations/europe-west3/keyRings/R/cryptoKeys/K",
		}},
	},
	{
		config.AzureKeyVault, "azure-kms",
		"The default Azure credential needs to wrap and unwrap with this key. Then add a\n" +
			"binding, which `cmekproxy keys bind` prints: see docs/kms.md.",
		[]keySetting{{
			"key_id", "key", "Identifier of the key, without a version",
			"https://vault-name.vault.azure.net/keys/cmekproxy",
		}},
	},
	{
		config.VaultTransit, "vault",
		"The token needs update on transit/encrypt/KEY and transit/decrypt/KEY; a Vault\n" +
			"Agent renews it. Logins with AppRole and Kubernetes are in docs/kms.md.",
		[]keySetting{
			{"address", "vault-address", "URL of the Vault server", "https://vault.example.com:8200"},
			{"key_id", "key", "Name of the transit key", "cmekproxy"},
			{"token_file", "vault-token-file", "File with the token, as of a Vault Agent", "/run/vault-agent/token"},
		},
	},
	{
		config.PKCS11, "hsm",
		"This needs a binary built with -tags pkcs11. The PIN comes from the environment.",
		[]keySetting{
			{"module", "pkcs11-module", "Path of the HSM's PKCS#11 library", "/usr/lib/softhsm/libsofthsm2.so"},
			{"token", "pkcs11-token", "Label of the token", "cmekproxy"},
			{"key_label", "key", "Label of the AES key", "wrapping"},
		},
	},
	{
		config.Local, "file",
		"A key in a file, for tests: anyone who can read it can decrypt all objects.",
		[]keySetting{{"key_file", "key", "File with the key; created if it does not exist", "/etc/cmekproxy/kms.key"}},
	},
}

// findKind returns the provider with this name or alias.
func findKind(name string) (*kmsKind, error) {
	var names []string
	for i := range kmsKinds {
		kind := &kmsKinds[i]
		if name == string(kind.provider) || name == kind.alias {
			return kind, nil
		}
		names = append(names, string(kind.provider))
	}
	return nil, fmt.Errorf("there is no provider %q; choose one of %s", name, strings.Join(names, ", "))
}

// exampleOf returns a minimal configuration whose values are examples.
func exampleOf(kind *kmsKind) minimal {
	m := minimal{ //nolint:gosec // names of variables
		Listen: "127.0.0.1:9000", AdminListen: "127.0.0.1:9001",
		Endpoint: "https://s3.example.com", Region: "us-east-1",
		OriginAccessKey: "${ORIGIN_ACCESS_KEY}", OriginSecret: "${ORIGIN_SECRET_KEY}",
		ClientAccessKey: "${APP_ACCESS_KEY}", ClientSecret: "${APP_SECRET_KEY}",
		Buckets: []string{"my-bucket"}, Provider: kind.provider, Key: make(map[string]string),
	}
	switch kind.provider { //nolint:exhaustive // the others have any store
	case config.AWSKMS:
		m.Endpoint, m.Region = "https://s3.eu-central-1.amazonaws.com", "eu-central-1"
		m.OriginAccessKey, m.OriginSecret = "", ""
	case config.GCPKMS:
		m.Endpoint, m.Region = "https://storage.googleapis.com", "auto"
	}
	for _, s := range kind.settings {
		m.Key[s.name] = s.example
	}
	return m
}

//go:embed minimal.yaml.tmpl
var minimalText string

// text returns the configuration as YAML.
func (m *minimal) text() ([]byte, error) {
	kind, err := findKind(string(m.Provider))
	if err != nil {
		return nil, err
	}
	page, err := template.New("config").Funcs(template.FuncMap{"quote": quoteYAML}).Parse(minimalText)
	if err != nil {
		return nil, err
	}

	var settings [][2]string
	for _, s := range kind.settings {
		if s.name != "token_file" { // which is in login
			settings = append(settings, [2]string{s.name, m.Key[s.name]})
		}
	}
	var out bytes.Buffer
	err = page.Execute(&out, map[string]any{
		"M": m, "Settings": settings, "TokenFile": m.Key["token_file"], "Comment": strings.Split(kind.comment, "\n"),
		"PIN": m.Provider == config.PKCS11,
	})
	return out.Bytes(), err
}

// plainYAML matches values that need no quotes in YAML, also within braces.
var plainYAML = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*$`)

// quoteYAML returns a value as YAML. References to the environment stay.
func quoteYAML(value string) (string, error) {
	switch strings.ToLower(value) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
	default:
		if plainYAML.MatchString(value) {
			return value, nil
		}
	}
	text, err := json.Marshal(value) // JSON is YAML
	return string(text), err
}
