package tenantkit

import (
	"cmp"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/template"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(
	template.New("").Option("missingkey=error").ParseFS(templateFiles, "templates/*"))

// formatFiles are the files of each provider, the default first.
var formatFiles = map[string][]struct{ name, file string }{
	AWS:   {{"cloudformation", "aws.cloudformation.yaml"}, {"terraform", "aws.terraform.tf"}},
	GCP:   {{"gcloud", "gcp.gcloud.sh"}, {"terraform", "gcp.terraform.tf"}},
	Azure: {{"az", "azure.az.sh"}, {"terraform", "azure.terraform.tf"}},
	Vault: {{"cli", "vault.cli.sh"}, {"terraform", "vault.terraform.tf"}},
}

// Formats returns the formats of a provider, the default first.
func Formats(provider string) (names []string) {
	for _, f := range formatFiles[provider] {
		names = append(names, f.name)
	}
	return names
}

// Order says which kit to make.
type Order struct {
	Provider string
	Format   string            // "" for the default of the provider
	Values   map[string]string // by Value.Name; the default applies if there is none
	// WholeBucket is for a tenant with a bucket, in which all objects are.
	WholeBucket bool
	// BucketKeys is for objects that are written with dek_reuse: their
	// encryption context has no object key.
	BucketKeys bool
	// Inspect also allows the proxy to read who may use the key, which Check
	// reports.
	Inspect bool
}

// Kit is the result of Init.
type Kit struct {
	Artifact string // what the customer's administrator applies
	Entry    string // for the vendor's configuration, in YAML
	Steps    string // what to do with both
}

// Init makes a kit.
func Init(o Order) (*Kit, error) {
	facts, err := complete(o.Provider, o.Values)
	if err != nil {
		return nil, err
	}

	list := formatFiles[o.Provider]
	format := cmp.Or(o.Format, list[0].name)
	i := slices.IndexFunc(list, func(f struct{ name, file string }) bool { return f.name == format })
	switch {
	case i < 0:
		return nil, fmt.Errorf("--format is %.80q, and must be one of: %s",
			format, strings.Join(Formats(o.Provider), ", "))
	case o.WholeBucket && facts["prefix"] != "":
		return nil, errors.New("--prefix and --whole-bucket exclude each other")
	case o.BucketKeys && o.Provider != AWS:
		return nil, errors.New("--bucket-keys is only for aws: the policies of other KMSs do not depend on the object")
	case o.Inspect && o.Provider == Azure:
		return nil, errors.New("--inspect is not for azure: the role that the proxy needs can read the key anyway")
	}

	if !o.WholeBucket {
		facts["prefix"] = cmp.Or(facts["prefix"], facts["name"]+"/")
	}
	data := map[string]any{
		"bucket_keys": o.BucketKeys, "inspect": o.Inspect,
		"check_bucket": kms.TrialBucket, "check_key": kms.TrialContext()["key"],
	}
	switch o.Provider {
	case AWS:
		facts["external-id"] = cmp.Or(facts["external-id"], randomID())
		data["partition"] = strings.Split(facts["vendor-principal"], ":")[1]
	case Vault:
		facts["auth-role"] = cmp.Or(facts["auth-role"], "cmekproxy-"+facts["name"])
	}
	for name, text := range facts {
		data[strings.ReplaceAll(name, "-", "_")] = text
	}

	kit := new(Kit)
	for _, part := range []struct {
		into *string
		file string
	}{
		{&kit.Artifact, list[i].file},
		{&kit.Entry, o.Provider + ".entry.yaml"},
		{&kit.Steps, o.Provider + ".steps.txt"},
	} {
		data["format"] = format
		var out strings.Builder
		if err := templates.ExecuteTemplate(&out, part.file, data); err != nil {
			return nil, err
		}
		*part.into = out.String()
	}
	return kit, nil
}

// randomID returns an external id that nobody else has.
func randomID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails: it crashes the program instead
	return hex.EncodeToString(b)
}
