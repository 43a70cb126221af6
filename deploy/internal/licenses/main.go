// Licenses prints the license texts of the Go modules in a program, and of the
// standard library:
//
//	licenses PROGRAM
//
// It runs in the source that the program was built from, for any platform, and
// reads the build tags and the platform in the program. The modules are in the
// module cache, because the build put them there. Nothing is downloaded.
//
// The texts are the files named LICENSE, COPYING, NOTICE or PATENTS in the
// directory of each package in the program, and in those above it up to the top
// of its module. A package without a license is an error. A text that several
// modules have is printed once. The same program gives the same bytes.
//
// google/go-licenses 1.6.0 is not used: it asks the network for the address of
// each license, omits the standard library, and its reports omit NOTICE files,
// which the Apache License requires (section 4).
package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "licenses:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("give one operand, the program")
	}
	info, err := buildinfo.ReadFile(args[0])
	if err != nil {
		return err
	}

	packages, err := list(info)
	if err != nil {
		return err
	}
	if err := sameModules(info, packages); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	goroot, err := command([]string{"env", "GOROOT"})
	if err != nil {
		return err
	}
	texts, err := collect(packages, strings.TrimSpace(string(goroot)))
	if err != nil {
		return err
	}
	return write(out, texts)
}

// pkg is a package of the program, as "go list" describes it.
type pkg struct {
	ImportPath string
	Dir        string
	Module     *module // nil in the standard library
}

type module struct {
	Path, Version, Dir string
	Main               bool
}

// list lists the packages that a program consists of.
func list(info *debug.BuildInfo) ([]pkg, error) {
	args := []string{"list", "-deps", "-json=ImportPath,Dir,Module"}
	var env []string
	for _, setting := range info.Settings {
		switch setting.Key {
		case "-tags":
			args = append(args, "-tags="+setting.Value)
		case "GOOS", "GOARCH", "CGO_ENABLED":
			env = append(env, setting.Key+"="+setting.Value)
		}
	}
	// The certified module is Go's own code again, elsewhere.
	output, err := command(append(args, info.Path), append(env, "GOFIPS140=off")...)
	if err != nil {
		return nil, err
	}

	var packages []pkg
	for d := json.NewDecoder(bytes.NewReader(output)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
	return packages, nil
}

// command returns the output of a go command.
func command(args []string, env ...string) ([]byte, error) {
	cmd := exec.CommandContext(context.Background(), "go", args...) //nolint:gosec // arguments of ours
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return output, nil
}

// sameModules returns an error if a program has other modules than the source.
func sameModules(info *debug.BuildInfo, packages []pkg) error {
	source := make(map[string]string)
	for _, p := range packages {
		if p.Module != nil && !p.Module.Main {
			source[p.Module.Path] = p.Module.Version
		}
	}

	program := make(map[string]string)
	for _, m := range info.Deps {
		program[m.Path] = m.Version
	}
	for _, path := range slices.Sorted(maps.Keys(program)) {
		if source[path] != program[path] {
			return fmt.Errorf("it has %s %s, and this source has %s: build it from this source",
				path, program[path], source[path])
		}
	}
	if len(source) != len(program) {
		return fmt.Errorf("it has %d modules, and this source has %d: build it from this source",
			len(program), len(source))
	}
	return nil
}

// licenseName matches the files that hold a license, and textName also those
// with other texts that a distributor has to pass on.
var (
	licenseName = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)([-._].*)?$`)
	textName    = regexp.MustCompile(`(?i)^((un)?(licen[cs]e|copying)|notice|patents)([-._].*)?$`)
)

// collect returns, for each text, the files that have it: the module, its
// version, and the path in it.
func collect(packages []pkg, goroot string) (map[string][]string, error) {
	texts := make(map[string][]string)
	licensed := make(map[string]bool) // the directories that were read, and whether they have a license
	for _, p := range packages {
		top, name := goroot, "Go's standard library"
		if m := p.Module; m != nil {
			top, name = m.Dir, m.Path+" "+m.Version
		}
		if p.Dir == "" || p.Module != nil && p.Module.Main {
			continue // unsafe, and the module whose license comes with the program
		}

		const sep = string(filepath.Separator)
		found := false
		for dir := p.Dir; strings.HasPrefix(dir+sep, top+sep); dir = filepath.Dir(dir) {
			if _, read := licensed[dir]; !read {
				var err error
				if licensed[dir], err = readTexts(texts, dir, top, name); err != nil {
					return nil, err
				}
			}
			found = found || licensed[dir]
		}
		if !found {
			return nil, fmt.Errorf("%s has no license for its package %s, so it must not be distributed:"+
				" use a version that has one, or another module", name, p.ImportPath)
		}
	}
	return texts, nil
}

// readTexts adds the texts in a directory, and reports whether it has a license.
func readTexts(texts map[string][]string, dir, top, module string) (licensed bool, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}

	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || filepath.Ext(name) == ".go" || !textName.MatchString(name) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return false, err
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(data), "\r\n", "\n"))
		if text == "" {
			continue
		}

		path, err := filepath.Rel(top, filepath.Join(dir, name))
		if err != nil {
			return false, err
		}
		texts[text] = append(texts[text], module+", "+filepath.ToSlash(path))
		licensed = licensed || licenseName.MatchString(name)
	}
	return licensed, nil
}

const head = `This program contains the Go standard library and the modules that are named below.
Each text is preceded by the modules and the files that have it. The source of a
module is what "go mod download MODULE@VERSION" fetches.
`

// write prints the texts in the order of the first file that has each.
func write(out io.Writer, texts map[string][]string) error {
	byFile := make(map[string]string)
	for text, files := range texts {
		slices.Sort(files)
		byFile[files[0]] = text
	}

	var all strings.Builder
	all.WriteString(head)
	for _, file := range slices.Sorted(maps.Keys(byFile)) {
		text := byFile[file]
		fmt.Fprintf(&all, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), strings.Join(texts[text], "\n"), text)
	}
	_, err := io.WriteString(out, all.String())
	return err
}
