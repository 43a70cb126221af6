package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// The store has its own conformance suite, which can run against any
// endpoint. Each case runs at the store and through the proxy. If a case
// passes only at the store, the proxy is the cause, and conformance.txt must
// list the case with a reason. See conformance.sh.
const (
	suite          = "github.com/versity/versitygw"
	suiteExpected  = "conformance.txt"
	suiteWorkers   = 4
	suiteCaseLimit = 2 * time.Minute
)

// unexplained is the reason that E2E_UPDATE=1 writes for new differences in
// conformance.txt. Replace it with the real reason.
const unexplained = "no reason yet"

// verdict has the errors of a case at the store and through the proxy. An
// error is empty if the case passed.
type verdict struct{ direct, proxied string }

// lost reports whether a case fails because of the proxy.
func (v verdict) lost() bool { return v.direct == "" && v.proxied != "" }

func TestConformance(t *testing.T) {
	if os.Getenv("E2E_CONFORMANCE") == "" {
		t.Skip("run by make conformance")
	}
	some := os.Getenv("E2E_CASES")
	wanted := regexp.MustCompile(some)
	verdicts := runSuite(t, slices.DeleteFunc(suiteCases(t), func(c suiteCase) bool { return !wanted.MatchString(c.name) }))
	if some == "" {
		maps.Copy(verdicts, runFunctional(t))
	}

	expected := readExpected(t)
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		reason, listed := expected.reasons[name]
		switch v := verdicts[name]; {
		case v.lost() && (!listed || reason == unexplained):
			t.Errorf("%s passes at the store only: %s", name, v.proxied)
			expected.add(name, unexplained)
		case listed && !v.lost() && storeKind() == "versitygw": // conformance.txt is about this store
			t.Errorf("%s does not pass at the store only, but %s has a reason for it: %s", name, suiteExpected, reason)
			delete(expected.reasons, name)
		}
	}

	if some != "" || storeKind() != "versitygw" {
		return
	}
	for name := range expected.reasons {
		if _, ok := verdicts[name]; !ok {
			t.Errorf("%s names %s, which the suite does not have", suiteExpected, name)
		}
	}

	if os.Getenv("E2E_UPDATE") != "" {
		expected.write(t)
	}
	checkSection(t, "conformance", conformanceSection(verdicts, expected))
}

// TestConformanceListed checks that the documentation names the cases of
// conformance.txt. It runs no case.
func TestConformanceListed(t *testing.T) {
	_, _, section, _ := readSection(t, "conformance")
	listed := make(map[string]bool)
	for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(section, -1) {
		listed[name[1]] = true
	}
	e := readExpected(t)
	for name, reason := range e.reasons {
		if !listed[name] || !strings.Contains(section, "**"+reason+"** ([S3]("+e.pages[reason]+")") ||
			reason == unexplained || e.pages[reason] == "" {
			t.Errorf("%s: %s: not so in %s; make conformance with E2E_UPDATE=1 writes it", name, reason, compatibility)
		}
	}
	if len(listed) != len(e.reasons) {
		t.Errorf("%s names %d cases, %s %d", compatibility, len(listed), suiteExpected, len(e.reasons))
	}
}

// suiteCase is a case of the suite. Some cases need a store that keeps
// versions.
type suiteCase struct {
	name      string
	versioned bool
}

// suiteCases lists the cases of the suite. Without an endpoint, the suite
// prints the name of each case before the case fails.
func suiteCases(t *testing.T) []suiteCase {
	t.Helper()
	var cases []suiteCase
	seen := make(map[string]bool)
	for _, flags := range [][]string{nil, {"--versioning-enabled"}} {
		out, _ := runSuiteCommand(t, endpoint{url: "http://" + freeAddress(t), credentials: newCredentials()}, append([]string{"full-flow"}, flags...)...)
		for _, line := range regexp.MustCompile(`(?m)^RUN +(\S+)`).FindAllStringSubmatch(out, -1) {
			if name := line[1]; !seen[name] {
				seen[name] = true
				cases = append(cases, suiteCase{name, flags != nil})
			}
		}
	}

	if len(cases) < 600 {
		t.Fatalf("the suite has %d cases", len(cases))
	}
	return cases
}

// runSuite runs each case in a separate process, because a crash would end
// the cases after it.
func runSuite(t *testing.T, cases []suiteCase) map[string]verdict {
	t.Helper()
	queue := make(chan suiteCase)
	verdicts := make(map[string]verdict)
	var mu sync.Mutex
	var workers sync.WaitGroup
	env, keyConfig, _ := startKMS(t)
	for i := range suiteWorkers {
		plain, versioned := newLane(t, fmt.Sprintf("lane-%d", i), env, keyConfig, false), newLane(t, fmt.Sprintf("versions-%d", i), env, keyConfig, true)
		workers.Go(func() {
			for c := range queue {
				lane := plain
				if c.versioned {
					lane = versioned
				}
				v := lane.judge(t, c)
				mu.Lock()
				verdicts[c.name] = v
				mu.Unlock()
			}
		})
	}

	for i, c := range cases {
		queue <- c
		if i%100 == 99 {
			fmt.Printf("conformance: %d of %d cases\n", i+1, len(cases))
		}
	}

	close(queue)
	workers.Wait()
	return verdicts
}

// runFunctional runs the functional tests of minio-go, once at the store and
// once through the proxy. They continue after a failure. Each test is a
// case, which fails if any of its steps fails.
func runFunctional(t *testing.T) map[string]verdict {
	t.Helper()
	env, keyConfig, _ := startKMS(t)
	l := newLane(t, "functional", env, keyConfig, false)
	direct, proxied := runFunctionalAt(t, l.store.store), runFunctionalAt(t, l.proxied)
	verdicts := make(map[string]verdict)
	for name, failure := range direct {
		got, ran := proxied[name]
		if !ran {
			got = "it has not run"
		}
		verdicts[name] = verdict{failure, got}
	}

	if len(verdicts) < 50 {
		t.Errorf("%d functional tests have run", len(verdicts))
	}
	return verdicts
}

// runFunctionalAt returns why each test failed, or "".
func runFunctionalAt(t *testing.T, e endpoint) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "minio-go-functional"))
	cmd.Dir, cmd.Env = t.TempDir(), environment("SERVER_ENDPOINT="+e.host(), "ACCESS_KEY="+e.accessKey, "SECRET_KEY="+e.secret,
		"ENABLE_HTTPS=0", "MINT_MODE=full", "RUN_ON_FAIL=1")
	out, err := cmd.CombinedOutput()
	results := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		var step struct{ Name, Status, Message, Alert, Error string }
		if json.Unmarshal([]byte(line), &step) != nil || step.Name == "" {
			continue
		}
		name := strings.ReplaceAll(step.Name, ": ", "/")
		switch {
		case step.Status == "PASS" && results[name] == "":
			results[name] = ""
		case step.Status != "PASS" && results[name] == "":
			results[name] = cmp.Or(step.Message+" "+step.Error, step.Alert)
		}
	}
	if err != nil && len(results) == 0 {
		t.Errorf("minio-go's functional tests: %v: %.2000s", err, out)
	}
	return results
}

// lane is a store and a proxy in front of it. It runs one case at a time,
// because all cases use the same bucket names.
type lane struct {
	store   *stack
	proxied endpoint
}

func newLane(t *testing.T, name string, env []string, keyConfig string, versioned bool) *lane {
	t.Helper()
	s := &stack{name: name + "-", dir: storeDir(t), iam: storeDir(t)}
	if versioned {
		s.versions = storeDir(t)
	}
	s.store = s.startStore(t, "http", newCredentials(), "", "")
	client := newCredentials()
	env = append(slices.Clone(env), "ORIGIN_ACCESS_KEY="+s.store.accessKey, "ORIGIN_SECRET_KEY="+s.store.secret,
		"APP_ACCESS_KEY="+client.accessKey, "APP_SECRET_KEY="+client.secret)
	return &lane{s, s.startProxy(t, "http", client, env, keyConfig, "", "")}
}

// judge runs a case at the store and through the proxy. A case that fails
// only through the proxy runs once more, because the cause may be timing.
func (l *lane) judge(t *testing.T, c suiteCase) verdict {
	v := verdict{direct: l.run(t, l.store.store, c), proxied: l.run(t, l.proxied, c)}
	if v.lost() {
		v.proxied = l.run(t, l.proxied, c)
	}
	return v
}

// run returns why a case fails, or "". It removes what the case leaves
// behind.
func (l *lane) run(t *testing.T, e endpoint, c suiteCase) string {
	args := []string{c.name}
	if c.versioned {
		args = append(args, "--versioning-enabled")
	}

	out, err := runSuiteCommand(t, e, args...)
	l.clear()
	if err == nil {
		return ""
	}

	if failure := regexp.MustCompile(`(?m)^FAIL +[^:]+: (.*)`).FindStringSubmatch(out); failure != nil {
		return failure[1]
	}
	if strings.Contains(out, "panic:") {
		return "the case crashes on the answer"
	}
	return cmp.Or(strings.TrimSpace(out), err.Error())
}

// clear removes everything that the store has.
func (l *lane) clear() {
	if storeKind() != "versitygw" {
		removeBuckets(newGoSDK(l.store.store))
		return
	}
	for _, dir := range []string{l.store.dir, l.store.versions} {
		left, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, path := range left {
			if dir != "" {
				_ = os.RemoveAll(path)
			}
		}
	}
}

// removeBuckets removes all buckets, as far as the store allows it: a bucket
// that stays makes the next case fail, and that says so.
func removeBuckets(c *goSDK) {
	ctx := context.Background()
	buckets, err := c.s3.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		return
	}
	for _, bucket := range buckets.Buckets {
		if uploads, err := c.s3.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: bucket.Name}); err == nil {
			for _, u := range uploads.Uploads {
				_, _ = c.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
					Bucket: bucket.Name, Key: u.Key, UploadId: u.UploadId,
				})
			}
		}

		remove := func(key, version *string) {
			_, _ = c.s3.DeleteObject(ctx, &s3.DeleteObjectInput{
				Bucket: bucket.Name, Key: key, VersionId: version, BypassGovernanceRetention: aws.Bool(true),
			})
		}
		versions := s3.NewListObjectVersionsPaginator(c.s3, &s3.ListObjectVersionsInput{Bucket: bucket.Name})
		for versions.HasMorePages() {
			page, err := versions.NextPage(ctx)
			if err != nil {
				break
			}
			for _, v := range page.Versions {
				remove(v.Key, v.VersionId)
			}
			for _, m := range page.DeleteMarkers {
				remove(m.Key, m.VersionId)
			}
		}
		_, _ = c.s3.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: bucket.Name})
	}
}

var colors = regexp.MustCompile("\x1b\\[[0-9]*m")

// runSuiteCommand runs the suite in the directory of the store's program,
// because the suite uses that program to create users.
func runSuiteCommand(t *testing.T, e endpoint, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), suiteCaseLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "versitygw"), append([]string{"--region", region, "test", "-a", e.accessKey, "-s", e.secret, "-e", e.url}, args...)...)
	cmd.Dir, cmd.Env = os.Getenv("E2E_BIN"), environment()
	out, err := cmd.CombinedOutput()
	return colors.ReplaceAllString(string(out), ""), errors.Join(err, ctx.Err())
}

// expectations are the contents of conformance.txt: the reasons in order, the
// page that documents each, and the reason of each case.
type expectations struct {
	order   []string
	pages   map[string]string
	reasons map[string]string
}

// readExpected reads conformance.txt. A line "# reason" is followed by "## "
// and a page that documents it, and by the cases that it explains.
func readExpected(t *testing.T) expectations {
	t.Helper()
	text, err := os.ReadFile(suiteExpected)
	if err != nil {
		t.Fatal(err)
	}

	e := expectations{pages: make(map[string]string), reasons: make(map[string]string)}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		reason, isReason := strings.CutPrefix(line, "# ")
		page, isPage := strings.CutPrefix(line, "## ")
		switch {
		case line == "":
		case isReason:
			e.order = append(e.order, reason)
		case len(e.order) == 0:
			t.Fatalf("%s: %s has no reason", suiteExpected, line)
		case isPage:
			e.pages[e.order[len(e.order)-1]] = page
		case e.reasons[line] != "":
			t.Errorf("%s: %s is there twice", suiteExpected, line)
		default:
			e.reasons[line] = e.order[len(e.order)-1]
		}
	}
	return e
}

func (e *expectations) add(name, reason string) {
	e.reasons[name] = reason
	if !slices.Contains(e.order, reason) {
		e.order = append(e.order, reason)
	}
}

func (e *expectations) write(t *testing.T) {
	t.Helper()
	var b strings.Builder
	for _, reason := range e.order {
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(e.reasons)), func(name string) bool { return e.reasons[name] != reason })
		if len(names) > 0 {
			fmt.Fprintf(&b, "# %s\n", reason)
			if page := e.pages[reason]; page != "" {
				fmt.Fprintf(&b, "## %s\n", page)
			}
			fmt.Fprintf(&b, "%s\n\n", strings.Join(names, "\n"))
		}
	}
	if err := os.WriteFile(suiteExpected, []byte(strings.TrimSuffix(b.String(), "\n")), 0o600); err != nil {
		t.Error(err)
	}
}

// conformanceSection returns the text of the documentation on this run.
func conformanceSection(verdicts map[string]verdict, e expectations) string {
	both, store, gained := 0, 0, 0
	byReason := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		switch v := verdicts[name]; {
		case v.direct != "" && v.proxied == "":
			gained++
		case v.direct != "":
		case v.proxied == "":
			store++
			both++
		default:
			store++
			byReason[e.reasons[name]] = append(byReason[e.reasons[name]], "`"+name+"`")
		}
	}

	var b strings.Builder
	fmt.Fprintf(&b, "The suite of %s %s and the functional tests of minio-go %s have %d cases: %d pass at the store, and %d of these through the proxy.",
		suite, moduleVersion(suite), moduleVersion("github.com/minio/minio-go/v7"), len(verdicts), store, both)
	if gained > 0 {
		fmt.Fprintf(&b, " %d pass through the proxy only.", gained)
	}

	b.WriteString(" The others, and why:\n")
	for _, reason := range e.order {
		if names := byReason[reason]; len(names) > 0 {
			fmt.Fprintf(&b, "\n- **%s** ([S3](%s), %d): %s\n", reason, e.pages[reason], len(names), strings.Join(names, ", "))
		}
	}
	return b.String()
}
