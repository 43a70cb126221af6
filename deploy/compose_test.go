package deploy_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

// TestCompose compares compose.yaml with the configurations that it mounts.
func TestCompose(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Command     []string
			Ports       []string
			Environment map[string]string
			Grace       string `yaml:"stop_grace_period"`
			Volumes     []any
		}
	}
	text := read(t, "compose/compose.yaml")
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	c, err := parse(t, "compose/config.yaml", read(t, "compose/config.yaml"))
	if err != nil {
		t.Fatal(err)
	}

	proxy := file.Services["proxy"]
	if grace, err := time.ParseDuration(proxy.Grace); err != nil || grace <= c.Limits.ShutdownGrace {
		t.Errorf("killed after %s, but limits.shutdown_grace is %v", proxy.Grace, c.Limits.ShutdownGrace)
	}
	if want := "127.0.0.1:9000:" + strings.TrimPrefix(c.Listen, "0.0.0.0:"); proxy.Ports[0] != want {
		t.Errorf("publishes %s, want %s", proxy.Ports[0], want)
	}
	if host := strings.TrimPrefix(strings.Split(c.Origin.Endpoint, ":")[1], "//"); file.Services[host].Environment == nil {
		t.Errorf("the store is at %s, which is no service", c.Origin.Endpoint)
	}
	target := `targets: ["proxy:` + strings.TrimPrefix(c.MetricsListen, "0.0.0.0:") + `"]`
	if !strings.Contains(read(t, "compose/prometheus.yaml"), target) {
		t.Errorf("Prometheus does not have %s", target)
	}

	given := read(t, "compose/env.example")
	for _, name := range regexp.MustCompile(`\$\{([A-Z_]+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(given, "\n"+name[1]+"=") {
			t.Errorf("%s is not in env.example", name[1])
		}
	}
	for _, name := range regexp.MustCompile(`\$\{([A-Z_]+)`).FindAllStringSubmatch(read(t, "compose/config.yaml"), -1) {
		if proxy.Environment[name[1]] == "" {
			t.Errorf("config.yaml needs %s, which compose.yaml does not pass", name[1])
		}
	}
}
