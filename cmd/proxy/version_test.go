package main

import (
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
)

func TestDescribeBuild(t *testing.T) {
	const commit = "33dce7c1f0aa4b1d8d1f36ca1c7ac5b7f0e3a1b2"
	for _, row := range []struct{ name, version, commit, modified, want string }{
		{"go install of a release", "v0.1.0", "", "", "v0.1.0"},
		{"a tagged commit", "v0.1.0", commit, "false", "v0.1.0"},
		{"a tagged commit with changes", "v0.1.0+dirty", commit, "true", "devel " + commit + " with local changes"},
		{"a commit", "v0.0.0-20261130144839-33dce7c1f0aa", commit, "false", "devel " + commit},
		{"a commit after a tag", "v0.1.1-0.20261130144839-33dce7c1f0aa", commit, "false", "devel " + commit},
		{"a commit, without a version", "(devel)", commit, "false", "devel " + commit},
		{"no version control", "(devel)", "", "", "devel"},
		{"a test", "", "", "", "devel"},
	} {
		t.Run(row.name, func(t *testing.T) {
			info := &debug.BuildInfo{Main: debug.Module{Version: row.version}}
			if row.commit != "" {
				info.Settings = []debug.BuildSetting{
					{Key: "vcs.revision", Value: row.commit}, {Key: "vcs.modified", Value: row.modified},
				}
			}
			if got := describeBuild(info); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}

// fipsVersion has the test binary print the version in place of the tests.
const fipsVersion = "CMEKPROXY_TEST_FIPS_VERSION"

// The mode is set for a whole process, so the test runs itself again.
func TestVersionStatesTheFIPSModule(t *testing.T) {
	if os.Getenv(fipsVersion) != "" {
		os.Exit(run(t.Context(), []string{"version"}, os.Stdout, os.Stderr))
	}

	for _, row := range []struct {
		mode string
		off  bool
	}{{"off", true}, {"on", false}} {
		t.Run(row.mode, func(t *testing.T) {
			command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVersionStatesTheFIPSModule$")
			command.Env = append(os.Environ(), "GODEBUG=fips140="+row.mode, fipsVersion+"=1")
			out, err := command.CombinedOutput()
			_, module, found := strings.Cut(strings.TrimSpace(string(out)), ", FIPS 140 module ")
			if err != nil || !found || (module == "off)") != row.off {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
