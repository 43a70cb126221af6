package main

import (
	"crypto/fips140"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// release is set by the linker for released binaries:
//
//	-ldflags "-X main.release=v1.2.3"
var release = ""

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), versionLine())
			return err
		},
	}
}

func versionLine() string {
	return fmt.Sprintf(
		"cmekproxy %s (%s, %s/%s, FIPS 140 module %s)",
		versionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH, fipsModule(),
	)
}

// fipsModule returns the version of Go's FIPS 140 module if the module is in
// use, and else "off". See docs/fips.md.
func fipsModule() string {
	if !fips140.Enabled() {
		return "off"
	}
	return fips140.Version()
}

// versionString returns the release, or else what the Go toolchain recorded
// about the source.
func versionString() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return describeBuild(info)
}

// describeBuild returns the version that "go install MODULE@VERSION" was
// given, or the tag of the commit, or else the commit.
func describeBuild(info *debug.BuildInfo) string {
	commit, modified := setting(info, "vcs.revision"), setting(info, "vcs.modified") == "true"

	// Without a tag, Go makes a version from the time and the commit.
	short := commit[:min(len(commit), 12)]
	tagged := info.Main.Version != "" && info.Main.Version != "(devel)" &&
		(commit == "" || !strings.Contains(info.Main.Version, short))
	switch {
	case tagged && !modified:
		return info.Main.Version
	case commit == "":
		return "devel"
	case modified:
		return "devel " + commit + " with local changes"
	default:
		return "devel " + commit
	}
}

// revision returns the commit of the source, or "" if the Go toolchain did not
// record it.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return setting(info, "vcs.revision")
}

// setting returns what the Go toolchain recorded under a name, or "".
func setting(info *debug.BuildInfo, name string) string {
	i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == name })
	if i < 0 {
		return ""
	}
	return info.Settings[i].Value
}
