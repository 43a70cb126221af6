package tenantkit

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// window returns the time from the first refusal by the KMS to the last byte,
// as long as probes are answered.
func (c *checker) window() time.Duration {
	if c.Probe <= 0 {
		return c.TTL
	}
	return min(c.TTL, c.Probe+min(c.Timeout, c.Probe))
}

// revocation says how the key is taken away, from the configuration.
func (c *checker) revocation() Revocation {
	window := c.window()
	r := Revocation{Window: window.String(), How: []string{
		"Once the KMS refuses the key, no object under it can be read or written, and running transfers end.",
	}}

	if window < c.TTL {
		r.How = append(r.How, fmt.Sprintf("The proxy asks the KMS about each key in use every %v, and waits %v for "+
			"the answer: so the last byte is sent within %v of the first refusal.",
			c.Probe, min(c.Timeout, c.Probe), window))
	} else {
		r.How = append(r.How,
			fmt.Sprintf("The proxy keeps an unwrapped data key for at most %v (dek_cache.ttl).", c.TTL))
	}
	r.How = append(r.How, fmt.Sprintf("If the KMS cannot be reached at all, that is no refusal: then the limit is %v.",
		c.TTL))

	first, commands := c.commands()
	r.How = append(r.How, first)
	r.Commands = commands
	return r
}

// commands returns what to know about revoking at the provider, and the
// commands for it. The fastest is first.
func (c *checker) commands() (first string, commands []string) {
	id := c.Wrapper.KeyID()
	switch c.Wrapper.(type) {
	case *kms.AWS:
		region, _ := awsPlace(id)
		return "Disable the key first. A multi-Region key has to be disabled in each Region.", []string{
			"aws kms disable-key --region " + quote(region) + " --key-id " + quote(id),
		}
	case *kms.GCP:
		key := strings.Split(id, "/") // projects P locations L keyRings R cryptoKeys K
		of := fmt.Sprintf("%s --project %s --location %s --keyring %s",
			quote(key[7]), quote(key[1]), quote(key[3]), quote(key[5]))
		return "Remove the proxy's role from the key first. Then disable every enabled version.", []string{
			"gcloud kms keys remove-iam-policy-binding " + of +
				" --member serviceAccount:PROXY --role roles/cloudkms.cryptoKeyEncrypterDecrypter",
			fmt.Sprintf("gcloud kms keys versions disable VERSION --key %s --project %s --location %s --keyring %s",
				quote(key[7]), quote(key[1]), quote(key[3]), quote(key[5])),
		}
	case *kms.Azure:
		first = "Disable every version of the key. Do not delete the vault: its name would disappear, " +
			"which is not a refusal."
		return first, []string{
			"az keyvault key list-versions --id " + quote(id) + " --query '[].kid' --output tsv | " +
				"while read -r kid; do az keyvault key set-attributes --id \"$kid\" --enabled false; done",
		}
	case *kms.Vault:
		return "Delete the policy of the proxy first: that works at once. Do not seal the server: " +
			"this is not a refusal.", []string{"vault policy delete " + quote(cmp.Or(c.policy, "POLICY"))}
	case *kms.Local:
		return "The vendor, who runs the proxy, has this key.",
			[]string{"cmekproxy keys disable " + quote(cmp.Or(c.keyFile, "FILE"))}
	default:
		return "Set CKA_DECRYPT of the key to false, or delete the key in the HSM.", nil
	}
}

// quote quotes a text for a shell.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(clean(s), "'", `'\''`) + "'"
}
