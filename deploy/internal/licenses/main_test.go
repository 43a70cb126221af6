package main

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// files are those of a program, and of a module that it depends on.
func files(changed map[string]string) map[string]string {
	all := map[string]string{
		"go.mod": "module example.test/program\n\ngo 1.26\n\nrequire example.test/dependency v1.2.3\n\n" +
			"replace example.test/dependency => ./dependency\n",
		"main.go":                      "package main\n\nimport _ \"example.test/dependency/below\"\n\nfunc main() {}\n",
		"LICENSE":                      "That of the program.\n",
		"dependency/go.mod":            "module example.test/dependency\n",
		"dependency/below/below.go":    "package below\n",
		"dependency/below/license.go":  "package below\n",
		"dependency/unused/unused.go":  "package unused\n",
		"dependency/unused/LICENSE":    "That of what is not in the program.\n",
		"dependency/LICENSE.md":        "Copyright\r\nof the module.\r\n",
		"dependency/NOTICE":            "A notice.\n",
		"dependency/below/COPYING_bsd": "Copyright\nof the package.\n",
	}
	for name, text := range changed {
		if text == "" {
			delete(all, name)
		} else {
			all[name] = text
		}
	}
	return all
}

// build writes files, builds the program, and returns its path. The test then
// runs in its source.
func build(t *testing.T, files map[string]string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(name, text)
	}

	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return program
}

func TestTexts(t *testing.T) {
	program := build(t, files(nil))
	var first, second bytes.Buffer
	for _, out := range []*bytes.Buffer{&first, &second} {
		if err := run([]string{program}, out); err != nil {
			t.Fatal(err)
		}
	}

	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same program gives different bytes")
	}
	for _, want := range []string{
		"\nexample.test/dependency v1.2.3, LICENSE.md\n\nCopyright\nof the module.\n",
		"\nexample.test/dependency v1.2.3, NOTICE\n\nA notice.\n",
		"\nexample.test/dependency v1.2.3, below/COPYING_bsd\n\nCopyright\nof the package.\n",
		"\nGo's standard library, LICENSE\n", "Copyright 2009 The Go Authors.", "\nGo's standard library, PATENTS\n",
	} {
		if !strings.Contains(first.String(), want) {
			t.Errorf("missing: %q", want)
		}
	}
	for _, unwanted := range []string{"That of", "package below", "../"} {
		if strings.Contains(first.String(), unwanted) {
			t.Errorf("in it, but not of the program's modules: %q", unwanted)
		}
	}
}

func TestRefused(t *testing.T) {
	onlyBelow := map[string]string{
		"dependency/LICENSE.md":  "",
		"main.go":                "package main\n\nimport _ \"example.test/dependency\"\n\nfunc main() {}\n",
		"dependency/dep.go":      "package dependency\n\nimport _ \"example.test/dependency/below\"\n",
		"dependency/unused/a.go": "package unused\n",
	}
	for name, changed := range map[string]map[string]string{
		"no license":                {"dependency/LICENSE.md": "", "dependency/below/COPYING_bsd": ""},
		"an empty license":          {"dependency/LICENSE.md": "\n", "dependency/below/COPYING_bsd": ""},
		"a license of a subpackage": onlyBelow,
	} {
		t.Run(name, func(t *testing.T) {
			program := build(t, files(changed))
			var out bytes.Buffer
			err := run([]string{program}, &out)
			if err == nil || !strings.Contains(err.Error(), "example.test/dependency v1.2.3 has no license") {
				t.Errorf("error %v", err)
			}
			if out.Len() > 0 {
				t.Errorf("printed %q", out.String())
			}
		})
	}

	t.Run("another source", func(t *testing.T) {
		program := build(t, files(nil))
		changed, err := os.ReadFile("go.mod")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("go.mod", bytes.ReplaceAll(changed, []byte("v1.2.3"), []byte("v1.2.4")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run([]string{program}, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "build it from this source") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no program", func(t *testing.T) {
		if err := run([]string{"main_test.go"}, new(bytes.Buffer)); err == nil {
			t.Error("no error")
		}
	})
}

// TestVariants collects the texts of each variant of cmekproxy: all have a
// license, also where no release is built.
func TestVariants(t *testing.T) {
	goroot, err := command([]string{"env", "GOROOT"})
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		tags, cgo, goos string
		module          string // one that the variant has
	}{
		"with the embedded store": {"", "0", "linux", "github.com/versity/versitygw"},
		"release for macOS":       {"nodev", "0", "darwin", "github.com/prometheus/client_golang"},
		"PKCS#11":                 {"nodev,pkcs11", "1", "linux", "github.com/miekg/pkcs11"},
	} {
		t.Run(name, func(t *testing.T) {
			info := &buildinfo.BuildInfo{Path: "github.com/cmekproxy/cmekproxy/cmd/proxy", Settings: []debug.BuildSetting{
				{Key: "-tags", Value: row.tags}, {Key: "CGO_ENABLED", Value: row.cgo}, {Key: "GOOS", Value: row.goos},
			}}
			packages, err := list(info)
			if err != nil {
				t.Fatal(err)
			}
			texts, err := collect(packages, strings.TrimSpace(string(goroot)))
			if err != nil {
				t.Fatal(err)
			}

			for _, files := range texts {
				if slices.ContainsFunc(files, func(file string) bool { return strings.HasPrefix(file, row.module+" ") }) {
					return
				}
			}
			t.Errorf("no text of %s", row.module)
		})
	}
}
