package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// object has the fields of Kubernetes objects that are compared with the
// configuration of the proxy.
type object struct {
	Kind string
	Data map[string]string
	Spec struct {
		Template struct{ Spec pod }
	}
}

type pod struct {
	TerminationGracePeriodSeconds int
	SecurityContext               struct {
		RunAsNonRoot   bool
		SeccompProfile struct{ Type string }
	}
	InitContainers, Containers []container
	Volumes                    []struct {
		Name      string
		Projected any
		Secret    struct{ DefaultMode int }
		ConfigMap struct{ Name string }
	}
}

type container struct {
	Name, RestartPolicy                         string
	Args                                        []string
	Env                                         []variable
	Ports                                       []struct{ Name, ContainerPort scalar }
	StartupProbe, ReadinessProbe, LivenessProbe *probe
	Resources                                   struct{ Requests, Limits map[string]string }
	VolumeMounts                                []struct{ Name, MountPath string }
	SecurityContext                             struct {
		AllowPrivilegeEscalation *bool
		ReadOnlyRootFilesystem   bool
		Capabilities             struct{ Drop []string }
	}
}

type variable struct{ Name, Value string }

type probe struct {
	HTTPGet                         struct{ Path, Port scalar }
	PeriodSeconds, FailureThreshold int
}

// scalar is the text of a string or a number.
type scalar string

func (s *scalar) UnmarshalJSON(text []byte) error {
	*s = scalar(bytes.Trim(text, `"`))
	return nil
}

// TestManifests compares the manifests with the configurations in them. check.sh
// and helm/test.sh name further ones, which they have rendered, in DEPLOY_RENDERED.
func TestManifests(t *testing.T) {
	manifests := map[string]string{}
	for _, name := range []string{"base", "sidecar"} {
		manifests[name] = source(t, name)
	}
	for _, path := range filepath.SplitList(os.Getenv("DEPLOY_RENDERED")) {
		manifests[path] = read(t, path)
	}

	for name, text := range manifests {
		t.Run(name, func(t *testing.T) {
			if problems := compare(t, text); len(problems) > 0 {
				t.Error(strings.Join(problems, "\n"))
			}
		})
	}
}

// TestManifestsDiffer makes a mistake in a manifest, which must be found.
func TestManifestsDiffer(t *testing.T) {
	for name, row := range map[string]struct{ manifest, old, new, problem string }{
		"killed too early": {
			"base", "terminationGracePeriodSeconds: 75", "terminationGracePeriodSeconds: 60",
			"killed after 1m0s, but limits.shutdown_grace is 1m0s",
		},
		"sidecar killed too early": {
			"sidecar", "shutdown_grace: 10s", "shutdown_grace: 45s",
			"killed after 45s, but limits.shutdown_grace is 45s",
		},
		"readiness too slow": {"base", "periodSeconds: 2", "periodSeconds: 5", "readiness fails after 10s"},
		"probe of another port": {
			"base", "path: /readyz, port: metrics", "path: /readyz, port: s3", "port 9000, but health_listen is :9002",
		},
		"probe of another path": {"base", "/healthz", "/health", "path /health"},
		"health on loopback":    {"base", `listen: ":9002"`, `listen: "127.0.0.1:9002"`, "cannot reach 127.0.0.1:9002"},
		"no mount": {
			"base", "app-secret-key", "../other/app-secret-key", "/etc/cmekproxy/other/app-secret-key is in no volume",
		},
		"readable secret": {"base", "0440", "0444", "volume secrets: mode 0444"},
		"memory":          {"base", "memory: 900Mi", "memory: 950Mi", "more than 90 % of the limit"},
		"root":            {"base", "runAsNonRoot: true", "runAsNonRoot: false", "not hardened"},
		"writable":        {"sidecar", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "not hardened"},
		"no sidecar":      {"sidecar", "restartPolicy: Always", "", "not a sidecar"},
		"endpoint":        {"sidecar", "http://127.0.0.1:9000", "http://127.0.0.1:9001", "AWS_ENDPOINT_URL_S3"},
		"client":          {"sidecar", "access_key: app", "access_key: other", "AWS_ACCESS_KEY_ID"},
	} {
		t.Run(name, func(t *testing.T) {
			text := source(t, row.manifest)
			wrong := strings.ReplaceAll(text, row.old, row.new)
			if wrong == text {
				t.Fatalf("%q is not in the manifest", row.old)
			}
			problems := strings.Join(compare(t, wrong), "\n")
			if !strings.Contains(problems, row.problem) {
				t.Errorf("problems %q, want one with %q", problems, row.problem)
			}
		})
	}
}

// source returns a Deployment, and the ConfigMap that kustomize generates.
func source(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join("kubernetes", name)
	indented := strings.ReplaceAll(read(t, filepath.Join(dir, "config.yaml")), "\n", "\n    ")
	return read(t, filepath.Join(dir, "deployment.yaml")) +
		"\n---\nkind: ConfigMap\ndata:\n  config.yaml: |\n    " + indented
}

// compare returns what is wrong with a manifest that has a Deployment and the
// configuration of the proxy in it.
func compare(t *testing.T, text string) []string {
	t.Helper()
	p, settings := decode(t, text)
	c, err := parse(t, "config.yaml", settings)
	if err != nil {
		t.Fatal(err)
	}

	containers, sidecar := p.Containers, len(p.InitContainers) > 0
	if sidecar {
		containers = p.InitContainers
	}
	i := slices.IndexFunc(containers, func(c container) bool { return c.Name == "cmekproxy" })
	if i < 0 {
		t.Fatal("no container cmekproxy")
	}

	var problems problems
	problems.drain(p, containers[i], c)
	problems.probes(containers[i], c)
	problems.files(p, containers[i], settings)
	problems.hardening(p, containers[i])
	if sidecar {
		problems.sidecar(containers[i], p.Containers[0], c)
	}
	return problems
}

// decode returns the pod of the first Deployment, and the configuration.
func decode(t *testing.T, text string) (p pod, settings string) {
	t.Helper()
	found := false
	for d := yaml.NewDecoder(strings.NewReader(text)); ; {
		o, err := next(d)
		switch {
		case errors.Is(err, io.EOF):
			if !found || settings == "" {
				t.Fatal("no Deployment, or no configuration")
			}
			return p, settings
		case err != nil:
			t.Fatal(err)
		case o.Kind == "Deployment":
			p, found = o.Spec.Template.Spec, true
		case o.Kind == "ConfigMap":
			settings = o.Data["config.yaml"]
		}
	}
}

// next decodes an object. Names of fields are matched as JSON does.
func next(d *yaml.Decoder) (o object, err error) {
	var document any
	if err := d.Decode(&document); err != nil {
		return o, err
	}
	text, err := json.Marshal(document)
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(text, &o)
}

type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

func (p *problems) drain(pod pod, c container, cfg *config.Config) {
	kill := time.Duration(pod.TerminationGracePeriodSeconds) * time.Second
	if kill <= cfg.Limits.ShutdownGrace {
		p.add("killed after %v, but limits.shutdown_grace is %v", kill, cfg.Limits.ShutdownGrace)
	}
	if r := c.ReadinessProbe; r != nil {
		after := time.Duration(r.PeriodSeconds*r.FailureThreshold) * time.Second
		if after >= cfg.Limits.ShutdownDelay {
			p.add("readiness fails after %v, but limits.shutdown_delay is %v", after, cfg.Limits.ShutdownDelay)
		}
	}
}

func (p *problems) probes(c container, cfg *config.Config) {
	host, health, _ := net.SplitHostPort(cfg.HealthListen)
	if host == "127.0.0.1" {
		p.add("the kubelet cannot reach %s", cfg.HealthListen)
	}

	for path, probe := range map[scalar]*probe{"/readyz": c.StartupProbe, "/healthz": c.LivenessProbe} {
		if probe == nil {
			p.add("no probe of %s", path)
			continue
		}
		port := probe.HTTPGet.Port
		for _, named := range c.Ports {
			if named.Name == port {
				port = named.ContainerPort
			}
		}
		if string(port) != health {
			p.add("a probe of port %s, but health_listen is %s", port, cfg.HealthListen)
		}
		if probe.HTTPGet.Path != path {
			p.add("a probe of the path %s, want %s", probe.HTTPGet.Path, path)
		}
	}
}

// files compares the paths in the configuration with the mounts.
func (p *problems) files(pod pod, c container, settings string) {
	paths := append(serverPath.FindAllString(settings, -1), c.Args[len(c.Args)-1])
	for _, file := range paths {
		file = path.Clean(file)
		if !slices.ContainsFunc(c.VolumeMounts, func(m struct{ Name, MountPath string }) bool {
			return strings.HasPrefix(file, m.MountPath+"/")
		}) {
			p.add("%s is in no volume", file)
		}
	}

	for _, v := range pod.Volumes {
		if v.ConfigMap.Name != "" || v.Projected != nil {
			continue
		}
		if mode := v.Secret.DefaultMode; mode == 0 || mode&0o007 != 0 {
			p.add("volume %s: mode %04o, but the proxy refuses secrets that all users can read", v.Name, mode)
		}
	}
}

func (p *problems) hardening(pod pod, c container) {
	s := c.SecurityContext
	if !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" ||
		s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem ||
		!slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		p.add("not hardened: %+v %+v", pod.SecurityContext, s)
	}

	var requested, limit int
	_, err := fmt.Sscanf(c.Resources.Requests["memory"]+" "+c.Resources.Limits["memory"], "%dMi %dMi", &requested, &limit)
	if err != nil || requested*10 > limit*9 {
		p.add("the memory request, which is GOMEMLIMIT, is more than 90 %% of the limit: %v", c.Resources)
	}
}

// sidecar checks how the application reaches the proxy.
func (p *problems) sidecar(proxy, app container, cfg *config.Config) {
	if proxy.RestartPolicy != "Always" {
		p.add("not a sidecar: the application would never start")
	}
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_S3": "http://" + cfg.Listen,
		"AWS_ACCESS_KEY_ID":   cfg.Clients[0].AccessKey,
	} {
		if !slices.Contains(app.Env, variable{name, value}) {
			p.add("the application needs %s=%s", name, value)
		}
	}
}
