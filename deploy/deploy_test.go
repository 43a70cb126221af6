// Package deploy_test loads every configuration under deploy as the proxy
// does, and compares the manifests with it. check.sh runs the vendors' tools.
package deploy_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

func TestExamples(t *testing.T) {
	providers := map[string]config.Provider{
		"aws-kms": config.AWSKMS, "gcp-kms": config.GCPKMS, "azure-kms": config.AzureKeyVault,
		"vault": config.VaultTransit, "pkcs11": config.PKCS11, "local": config.Local,
	}
	paths, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(paths) != len(providers) {
		t.Fatalf("%d examples for %d providers, %v", len(paths), len(providers), err)
	}

	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			text := read(t, path)
			c, err := parse(t, path, text)
			if err != nil {
				t.Fatal(err)
			}

			name := strings.TrimSuffix(filepath.Base(path), ".yaml")
			if got := c.Keys[0].Provider; got != providers[name] || len(c.Keys) != 1 {
				t.Errorf("%d keys, the first of provider %s", len(c.Keys), got)
			}
			if n := strings.Count(text, "\n"); n < 15 || n > 25 {
				t.Errorf("%d lines: an example has 15 to 25", n)
			}

			wantMisspellingRefused(t, path, text)
		})
	}
}

// wantMisspellingRefused misspells each key of a configuration in turn.
func wantMisspellingRefused(t *testing.T, path, text string) {
	t.Helper()
	keys := regexp.MustCompile(`(?m)^(?:[ -]*)([a-z_]+):`).FindAllStringSubmatchIndex(text, -1)
	if len(keys) < 10 {
		t.Fatalf("%d keys in %s", len(keys), path)
	}

	for _, at := range keys {
		key := text[at[2]:at[3]]
		_, err := parse(t, path, text[:at[3]]+"x"+text[at[3]:])
		if err == nil || !strings.Contains(err.Error(), key+"x") {
			t.Errorf("%sx in place of %s: %v", key, key, err)
		}
	}
}

// TestCredentialsDirectory reads a secret as README.md says for systemd.
func TestCredentialsDirectory(t *testing.T) {
	if !strings.Contains(read(t, "README.md"), "file:${CREDENTIALS_DIRECTORY}/NAME") {
		t.Error("README.md does not have the form that is tested here")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app-secret-key"), []byte("a-secret-of-the-client\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(read(t, "examples/aws-kms.yaml"), "/etc/cmekproxy/secrets/", "${CREDENTIALS_DIRECTORY}/")

	for name, row := range map[string]struct {
		dir string
		ok  bool
	}{"of the service": {dir, true}, "of another service": {t.TempDir(), false}} {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse("config.yaml", []byte(text), func(string) (string, bool) { return row.dir, true })
			if ok := err == nil && c.Clients[0].SecretKey == "a-secret-of-the-client"; ok != row.ok {
				t.Errorf("read the secret: %v, want %v; %v", ok, row.ok, err)
			}
		})
	}
}

// TestPodMonitor: the monitor selects the pods of the sidecar, and their port.
func TestPodMonitor(t *testing.T) {
	var monitor struct {
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
			PodMetricsEndpoints []struct{ Port string } `yaml:"podMetricsEndpoints"`
		}
	}
	var deployment struct {
		Spec struct {
			Template struct {
				Metadata struct{ Labels map[string]string }
				Spec     struct {
					InitContainers []struct{ Ports []struct{ Name string } } `yaml:"initContainers"`
				}
			}
		}
	}
	for path, into := range map[string]any{"podmonitor": &monitor, "deployment": &deployment} {
		if err := yaml.Unmarshal([]byte(read(t, "kubernetes/sidecar/"+path+".yaml")), into); err != nil {
			t.Fatal(path, err)
		}
	}

	pod := deployment.Spec.Template
	if labels := monitor.Spec.Selector.MatchLabels; len(labels) == 0 || !maps.Equal(labels, pod.Metadata.Labels) {
		t.Errorf("it selects %v, and the pods have %v", labels, pod.Metadata.Labels)
	}
	if len(monitor.Spec.PodMetricsEndpoints) != 1 ||
		monitor.Spec.PodMetricsEndpoints[0].Port != pod.Spec.InitContainers[0].Ports[0].Name {
		t.Errorf("it reads %v, and the proxy has %v", monitor.Spec.PodMetricsEndpoints, pod.Spec.InitContainers[0].Ports)
	}
}

// serverPath matches the paths that a configuration names on a server.
var serverPath = regexp.MustCompile(`/etc/cmekproxy/[a-z0-9./-]+`)

// parse parses a configuration, whose files are made in a temporary directory
// and whose environment variables are set.
func parse(t *testing.T, name, text string) (*config.Config, error) {
	t.Helper()
	dir := t.TempDir()
	for i, path := range serverPath.FindAllString(text, -1) {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte("a-secret-of-more-than-20-characters\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		text = strings.Replace(text, path, file, 1)
	}
	return config.Parse(name, []byte(text), func(name string) (string, bool) { return "value-of-" + name, true })
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
