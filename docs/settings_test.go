package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// interfaceFile lists the public names of cmekproxy. A test of cmd/proxy keeps
// it equal to the code.
const interfaceFile = "../cmd/proxy/testdata/interface.txt"

// lateMetrics are registered only under some configurations, so interfaceFile
// does not list them.
var lateMetrics = []string{
	"cmekproxy_tls_certificate_expiry_timestamp_seconds",
	"cmekproxy_trace_spans_exported_total", "cmekproxy_trace_spans_dropped_total",
	"cmekproxy_tls_client_ca_expiry_timestamp_seconds",
}

// publicNames returns the names of one kind in interfaceFile.
func publicNames(t *testing.T, kind string) []string {
	t.Helper()
	text, err := os.ReadFile(interfaceFile)
	if err != nil {
		t.Fatal(err)
	}

	var names []string
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), kind+" "); ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		t.Fatalf("%s lists no %s", interfaceFile, kind)
	}
	return names
}

// documents returns the documents by path. The changelog is not among them: it
// names what earlier releases had.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, pattern := range []string{"*.md", "adr/*.md", "../*.md", "../contrib/*/README.md", "../deploy/README.md", "../config.example.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if filepath.Base(path) != "CHANGELOG.md" {
				texts[path] = string(text)
			}
		}
	}
	return texts
}

// codeSpan matches `code` within a line.
var codeSpan = regexp.MustCompile("`([^`\n]+)`")

func codeSpans(text string) (spans []string) {
	for _, m := range codeSpan.FindAllStringSubmatch(text, -1) {
		spans = append(spans, m[1])
	}
	return spans
}

// settingRow matches a row of a table of configuration.md: the name of the
// setting, and four more columns.
var settingRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_.]+)` \\|(?:[^|\n]*\\|){4}$")

func TestConfigurationListsAllSettings(t *testing.T) {
	text, err := os.ReadFile("configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range settingRow.FindAllSubmatch(text, -1) {
		listed = append(listed, string(m[1]))
	}

	settings := publicNames(t, "setting")
	for _, name := range settings {
		if !slices.Contains(listed, name) {
			t.Errorf("configuration.md does not list the setting %s", name)
		}
	}
	for _, name := range listed {
		if !slices.Contains(settings, name) {
			t.Errorf("configuration.md lists %s, which is not a setting", name)
		}
	}
}

// settingName matches the full name of a setting in a code span, with or
// without a value.
var settingName = regexp.MustCompile(`^([a-z_]+(?:\.[a-z0-9_]+)+)(?:: .*)?$`)

func TestDocumentsNameExistingSettings(t *testing.T) {
	settings, sections := publicNames(t, "setting"), make(map[string]bool)
	for _, name := range settings {
		section, _, nested := strings.Cut(name, ".")
		sections[section] = nested
	}
	exists := func(name string) bool {
		return slices.ContainsFunc(settings, func(s string) bool { return s == name || strings.HasPrefix(s, name+".") })
	}

	for path, text := range documents(t) {
		for _, span := range codeSpans(text) {
			m := settingName.FindStringSubmatch(span)
			if m == nil {
				continue
			}
			section, _, _ := strings.Cut(m[1], ".")
			isFile := regexp.MustCompile(`\.(go|md|yaml|json|log|key|txt)$`).MatchString(m[1])
			if sections[section] && !isFile && !exists(m[1]) {
				t.Errorf("%s names the setting %s, which does not exist", path, m[1])
			}
		}
	}
}

var (
	metricName   = regexp.MustCompile(`\bcmekproxy_[a-z0-9_]*[a-z0-9]`)
	metricSuffix = regexp.MustCompile(`_(count|sum|bucket)$`) // of histograms
)

func TestDocumentsNameExistingMetrics(t *testing.T) {
	metrics := slices.Clone(lateMetrics)
	for _, entry := range publicNames(t, "metric") {
		name, _, _ := strings.Cut(entry, " ")
		metrics = append(metrics, name)
	}

	for path, text := range documents(t) {
		for _, name := range metricName.FindAllString(text, -1) {
			if !slices.Contains(metrics, name) && !slices.Contains(metrics, metricSuffix.ReplaceAllString(name, "")) {
				t.Errorf("%s names the metric %s, which does not exist", path, name)
			}
		}
	}

	text := documents(t)["metrics.md"]
	for _, name := range metrics {
		if !strings.Contains(text, "| `"+name+"` |") {
			t.Errorf("metrics.md does not list the metric %s", name)
		}
	}
}

var (
	// commandLine matches the command line of a command of cmekproxy.
	commandLine = regexp.MustCompile("(?m)(?:^|[`/ (])cmekproxy ([a-z][^`|\n]*)")
	flagName    = regexp.MustCompile(`(?:^|[ (])--?([a-z][a-z-]*)`)
)

// TestDocumentsNameExistingFlags checks the flags of command lines that name
// their command.
func TestDocumentsNameExistingFlags(t *testing.T) {
	flags, commands := make(map[string][]string), make(map[string]bool)
	for _, entry := range publicNames(t, "flag") {
		words := strings.Fields(entry)
		command := strings.Join(words[:len(words)-1], " ")
		flags[command] = append(flags[command], words[len(words)-1])
		commands[words[0]] = true
	}

	for path, text := range documents(t) {
		for _, m := range commandLine.FindAllStringSubmatch(text, -1) {
			words := strings.FieldsFunc(m[1], unicode.IsSpace)
			if !commands[words[0]] {
				continue
			}
			command := words[0]
			if len(words) > 1 && flags[command+" "+words[1]] != nil {
				command += " " + words[1]
			}
			for _, flag := range flagName.FindAllStringSubmatch(m[1], -1) {
				if !slices.Contains(flags[command], flag[1]) {
					t.Errorf("%s: cmekproxy %s has no flag --%s", path, command, flag[1])
				}
			}
		}
	}
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	repoPath = regexp.MustCompile(`^(?:internal|cmd|docs|e2e|bench|contrib|deploy)/[A-Za-z0-9_./-]+$`)
)

// anchors returns the anchors of a document's headings, as GitHub makes them.
func anchors(text string) map[string]bool {
	found := make(map[string]bool)
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			default:
				return -1
			}
		}, strings.TrimSpace(m[1]))
		found[anchor] = true
	}
	return found
}

// TestDocumentsLinkToExistingFiles checks links, their anchors, and paths of
// the repository in code spans.
func TestDocumentsLinkToExistingFiles(t *testing.T) {
	for path, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			checkLink(t, path, m[1])
		}
		for _, span := range codeSpans(text) {
			if !repoPath.MatchString(span) {
				continue
			}
			if _, err := os.Stat(filepath.Join("..", span)); err != nil {
				t.Errorf("%s names %s: %v", path, span, err)
			}
		}
	}
}

func checkLink(t *testing.T, path, target string) {
	t.Helper()
	if strings.Contains(target, "://") {
		return
	}
	file, anchor, _ := strings.Cut(target, "#")
	to := path
	if file != "" {
		to = filepath.Join(filepath.Dir(path), file)
	}

	info, err := os.Stat(to)
	if err != nil {
		t.Errorf("%s links to %s: %v", path, target, err)
		return
	}
	if anchor == "" || info.IsDir() {
		return
	}
	text, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if !anchors(string(text))[anchor] {
		t.Errorf("%s links to %s, which has no such heading", path, target)
	}
}

// TestIndexLinksToAllDocuments checks that docs/README.md names each page.
func TestIndexLinksToAllDocuments(t *testing.T) {
	all := documents(t)
	for path := range all {
		moved := path == "operations.md" || path == "README.md"
		if strings.Contains(path, "/") || moved {
			continue
		}
		if !strings.Contains(all["README.md"], "]("+path) {
			t.Errorf("docs/README.md does not link to %s", path)
		}
	}
}
