package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// kits are the arguments of tenant init, for each provider.
var kits = map[string]struct {
	formats []string
	args    []string
}{
	"aws": {[]string{"cloudformation", "terraform"}, []string{
		"--account", "444455556666", "--region", "eu-central-1",
		"--vendor-principal", "arn:aws:iam::111122223333:role/cmekproxy", "--bucket-keys", "--inspect",
	}},
	"gcp": {[]string{"gcloud", "terraform"}, []string{
		"--project", "acme-keys", "--location", "europe-west3", "--inspect",
		"--service-account", "proxy@vendor.iam.gserviceaccount.com",
	}},
	"azure": {[]string{"az", "terraform"}, []string{
		"--location", "westeurope", "--vault-name", "acme-keys",
		"--azure-tenant", "72f988bf-0000-0000-0000-2d7cd011db47", "--app-id", "11111111-2222-3333-4444-555555555555",
	}},
	"vault": {[]string{"cli", "terraform"}, []string{
		"--address", "https://vault.acme.example", "--namespace", "team/app", "--inspect",
	}},
}

// TestTenantKit gives what a customer's administrator applies to the tools that
// would read it: the parser of Terraform, and shellcheck.
func TestTenantKit(t *testing.T) {
	if !selected("tenant-kit") || os.Getenv("E2E_TARGET") == "store" {
		t.Skip("not selected, or without the proxy")
	}
	for provider, kit := range kits {
		for _, format := range kit.formats {
			t.Run(provider+"-"+format, func(t *testing.T) {
				args := append([]string{
					"tenant", "init", provider, "--name", "acme", "--bucket", "data", "--format", format,
				}, kit.args...)
				var stdout, stderr bytes.Buffer
				c := exec.CommandContext(t.Context(), tool(t, "cmekproxy"), args...)
				c.Stdout, c.Stderr = &stdout, &stderr
				if err := c.Run(); err != nil {
					t.Fatalf("%v: %s", err, &stderr)
				}

				switch text := stdout.Bytes(); {
				case format == "terraform":
					checkTerraform(t, text)
				case strings.HasPrefix(stdout.String(), "#!/bin/sh"):
					checkShell(t, text)
				}
			})
		}
	}
}

// checkTerraform parses a file, and checks that it is as terraform fmt writes
// it.
func checkTerraform(t *testing.T, text []byte) {
	t.Helper()
	if _, problems := hclparse.NewParser().ParseHCL(text, "kit.tf"); problems.HasErrors() {
		t.Error(problems)
	}
	if got := hclwrite.Format(text); !bytes.Equal(got, text) {
		t.Errorf("terraform fmt would write\n%s", got)
	}
}

func checkShell(t *testing.T, text []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kit.sh")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "shellcheck", path).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}
