package config

import (
	"regexp"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
)

// IsTemplate reports whether this is not one key but a key for each tenant,
// named by the object; see package keytemplate and Template.
func (k *Key) IsTemplate() bool { return keytemplate.Is(k.Template()) }

// Template returns the setting that may be a template.
func (k *Key) Template() string {
	if k.Provider == Local {
		return k.KeyFile
	}
	return k.KeyID
}

// Expanded returns the key of one tenant: name is its name, and id replaces
// the template.
func (k Key) Expanded(name, id string) Key {
	k.Name = name
	if k.Provider == Local {
		k.KeyFile = id
	} else {
		k.KeyID = id
	}
	return k
}

// templateForm is the path of a setting that may be a key template. Its
// variables stay in the value.
var templateForm = regexp.MustCompile(`^keys\[[0-9]+\]\.(key_id|key_file)$`)

func takesTemplate(path string) bool { return templateForm.MatchString(path) }

// checkTemplate checks a key that is a template.
func (d *decoder) checkTemplate(k *Key, keys []Key) {
	field, name := &k.KeyID, "key_id"
	if k.Provider == Local {
		field, name = &k.KeyFile, "key_file"
	}

	const only = "only aws-kms, vault-transit, gcp-kms and local keys can be templates"
	_, err := keytemplate.Parse(*field)
	switch {
	case k.Provider != AWSKMS && k.Provider != VaultTransit && k.Provider != GCPKMS && k.Provider != Local:
		d.fail(field, "%s has a variable: %s", name, only)
	case err != nil:
		d.fail(field, "%s is not a usable template: %v", name, err)
	case k.Provider == AWSKMS && !awsTemplateForm.MatchString(*field):
		d.fail(field, "key_id with variables must be an alias, such as alias/tenant-${prefix.1}, or the ARN of one; "+
			"a variable must follow alias/")
	case k.Provider == VaultTransit && !vaultTemplateForm.MatchString(*field):
		d.fail(field, "key_id with variables must be the name of a transit key, such as tenant-${prefix.1}; "+
			"between two variables, use '.'")
	case k.Provider == GCPKMS && !gcpTemplateForm.MatchString(*field):
		d.fail(field, "key_id with variables must be the name of a key, such as "+
			"projects/P/locations/L/keyRings/R/cryptoKeys/tenant-${prefix.1}, with variables in R and in the key only")
	case k.Provider == Local && !strings.HasPrefix(*field, "/"):
		d.fail(field, "key_file with variables must be an absolute path")
	case k.Provider == Local && strings.Contains("/"+*field+"/", "/../"):
		d.fail(field, "key_file with variables must not contain ..")
	}

	d.checkTemplateSettings(k)
	for i := range keys {
		if strings.HasPrefix(keys[i].Name, k.Name+":") {
			d.fail(&keys[i].Name, "the keys of %s have names that begin with %s:", k.Name, k.Name)
		}
	}
}

// checkTemplateSettings refuses what would be the same for all tenants.
func (d *decoder) checkTemplateSettings(k *Key) {
	for _, other := range []struct {
		given bool
		field any
		name  string
	}{
		{
			len(k.AlsoKnownAs) > 0, &k.AlsoKnownAs,
			"also_known_as: give each of these keys an entry, and name it in read_keys",
		},
		{k.EnvelopeID != "", &k.EnvelopeID, "envelope_id: it would be the same for all tenants"},
		{
			k.RecoveryPublicKey != "", &k.RecoveryPublicKey,
			"recovery_public_key: it would open the objects of all tenants",
		},
	} {
		if other.given {
			d.fail(other.field, "a key with variables cannot have %s", other.name)
		}
	}
}

var (
	// The account and the region of an alias are the same for all tenants.
	awsTemplateForm = regexp.MustCompile(`^(arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]{12}:)?alias/[A-Za-z0-9/_${}.-]+$`)
	gcpTemplateForm = regexp.MustCompile(`^projects/[a-z0-9.:-]+/locations/[a-z0-9-]+` +
		`/keyRings/` + gcpName + `/cryptoKeys/` + gcpName + `$`)
	vaultTemplateForm = regexp.MustCompile(`^[A-Za-z0-9_${}.-]+$`)
)

// gcpName is the name of a key ring or a key, with variables.
const gcpName = `([a-zA-Z0-9_-]|\$\{[a-z0-9.]+\})+`
