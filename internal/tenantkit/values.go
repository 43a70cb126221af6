package tenantkit

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The providers for which there is a kit.
const (
	AWS   = "aws"
	GCP   = "gcp"
	Azure = "azure"
	Vault = "vault"
)

// Providers returns the providers for which there is a kit.
func Providers() []string { return []string{AWS, GCP, Azure, Vault} }

// Value is a fact that Init needs. The forms are strict: a value in one of them
// means nothing else in YAML, JSON, HCL or a shell.
type Value struct {
	Name      string   // also that of the flag
	Usage     string   // with the placeholder in backquotes
	Default   string   // "" if the value is required, except for Optional
	Providers []string // nil for all
	Optional  bool

	form *regexp.Regexp
	want string
}

// For reports whether a provider needs the value.
func (v *Value) For(provider string) bool {
	return v.Providers == nil || slices.Contains(v.Providers, provider)
}

func form(text string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + text + `)\z`) }

const uuid = `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`

var knownValues = []Value{
	{
		Name: "name", Usage: "`NAME` of the tenant, and of its key",
		form: form(`[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?`),
		want: "1 to 48 lower-case letters, digits and '-', not at the ends",
	},
	{
		Name: "bucket", Usage: "`BUCKET` with the tenant's objects",
		form: form(`[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]`), want: "the name of a bucket",
	},
	{
		Name: "prefix", Usage: "`PREFIX` of the tenant's objects (default: the name and /)", Optional: true,
		form: form(`(?:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}/){1,9}`),
		want: "1 to 9 segments of letters, digits, '-', '_' and '.', each ending with /",
	},
	{
		Name: "vendor-principal", Usage: "`ARN` of the user or role that the proxy runs as", Providers: []string{AWS},
		form: form(`arn:aws(?:-[a-z]+)*:iam::[0-9]{12}:(?:user|role)/[A-Za-z0-9_+=,.@/-]{1,512}`),
		want: "the ARN of a user or a role, such as arn:aws:iam::111122223333:role/cmekproxy",
	},
	{
		Name: "account", Usage: "`ACCOUNT` of the customer, 12 digits", Providers: []string{AWS},
		form: form(`[0-9]{12}`), want: "12 digits",
	},
	{
		Name: "region", Usage: "`REGION` of the key", Providers: []string{AWS},
		form: form(`[a-z]{2}(?:-[a-z]+){1,3}-[0-9]{1,2}`), want: "a region such as eu-central-1",
	},
	{
		Name: "external-id", Usage: "external `ID` of this tenant (default: random)", Optional: true,
		Providers: []string{AWS}, form: form(`[A-Za-z0-9_.-]{8,128}`),
		want: "8 to 128 letters, digits, '-', '_' and '.'",
	},
	{
		Name: "project", Usage: "`PROJECT` of the customer", Providers: []string{GCP},
		form: form(`[a-z][a-z0-9-]{4,28}[a-z0-9]`), want: "the id of a project",
	},
	{
		Name: "key-ring", Usage: "name of the key `RING`", Default: "cmekproxy", Providers: []string{GCP},
		form: form(`[A-Za-z0-9_-]{1,63}`), want: "1 to 63 letters, digits, '-' and '_'",
	},
	{
		Name: "service-account", Usage: "`EMAIL` of the service account that the proxy runs as",
		Providers: []string{GCP}, form: form(`[a-z0-9-]{1,63}@[a-z0-9.-]{1,100}\.gserviceaccount\.com`),
		want: "an address such as proxy@vendor.iam.gserviceaccount.com",
	},
	{
		Name: "location", Usage: "`LOCATION` of the key, such as europe-west3 or westeurope",
		Providers: []string{GCP, Azure},
		form:      form(`[a-z][a-z0-9-]{1,39}`), want: "a location such as europe-west3",
	},
	{
		Name: "vault-name", Usage: "`NAME` of the customer's key vault", Providers: []string{Azure},
		form: form(`[a-z][a-z0-9-]{1,22}[a-z0-9]`), want: "3 to 24 lower-case letters, digits and '-'",
	},
	{
		Name: "resource-group", Usage: "resource `GROUP` of the vault", Default: "cmekproxy",
		Providers: []string{Azure}, form: form(`[A-Za-z0-9_-]{1,90}`), want: "1 to 90 letters, digits, '-' and '_'",
	},
	{
		Name: "azure-tenant", Usage: "`ID` of the customer's Microsoft Entra tenant", Providers: []string{Azure},
		form: form(uuid), want: "a UUID in lower case",
	},
	{
		Name: "app-id", Usage: "application (client) `ID` of the proxy", Providers: []string{Azure},
		form: form(uuid), want: "a UUID in lower case",
	},
	{
		Name: "address", Usage: "`URL` of the customer's Vault or OpenBao server", Providers: []string{Vault},
		form: form(`https://[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[0-9]{1,5})?`),
		want: "an address such as https://vault.example.com:8200",
	},
	{
		Name: "namespace", Usage: "`PATH` of the namespace (default: the root namespace)", Optional: true,
		Providers: []string{Vault}, form: form(`[a-z0-9_-]{1,64}(?:/[a-z0-9_-]{1,64}){0,7}`),
		want: "a path of lower-case letters, digits, '-' and '_'",
	},
	{
		Name: "mount", Usage: "`PATH` of the transit engine", Default: "transit", Providers: []string{Vault},
		form: form(`[a-z0-9_-]{1,64}(?:/[a-z0-9_-]{1,64}){0,7}`),
		want: "a path of lower-case letters, digits, '-' and '_'",
	},
	{
		Name: "auth-role", Usage: "`NAME` of the AppRole and its policy (default: cmekproxy- and the name)",
		Optional: true, Providers: []string{Vault},
		form: form(`[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?`), want: "1 to 64 lower-case letters, digits and '-'",
	},
}

// Values returns the facts that Init needs.
func Values() []Value { return slices.Clone(knownValues) }

// errUnknownProvider is returned by Init and Formats.
var errUnknownProvider = errors.New("there is no kit for this provider: use " + strings.Join(Providers(), ", "))

// complete returns all values of a provider, with defaults, or an error for each
// that is missing, invalid, or for another provider.
func complete(provider string, given map[string]string) (map[string]string, error) {
	if !slices.Contains(Providers(), provider) {
		return nil, errUnknownProvider
	}

	out := make(map[string]string)
	var problems []error
	for i := range knownValues {
		v := &knownValues[i]
		text := given[v.Name]
		switch {
		case !v.For(provider):
			if text != "" {
				problems = append(problems, fmt.Errorf("--%s is not for %s", v.Name, provider))
			}
			continue
		case text == "":
			text = v.Default
		}

		switch {
		case text == "" && !v.Optional:
			problems = append(problems, fmt.Errorf("--%s is missing: %s", v.Name, strings.ReplaceAll(v.Usage, "`", "")))
		case text != "" && !v.form.MatchString(text):
			problems = append(problems, fmt.Errorf("--%s is %.80q, and must be %s", v.Name, text, v.want))
		}
		out[v.Name] = text
	}

	return out, errors.Join(problems...)
}
