package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// table is the report of all checks. It is printed at the end.
var table = &report{}

func TestMain(m *testing.M) {
	code := m.Run()
	table.print(os.Stdout)
	if (code == 0 || os.Getenv("E2E_UPDATE") != "") && whole(flag.Lookup("test.run").Value.String()) {
		if err := table.updateMatrix(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

// clients are the clients that these tests call directly. E2E_CLIENTS is a
// space-separated list that selects some of these clients and of the
// scripts.
var clients = []struct {
	name string
	make func(e endpoint, dir string) client
}{
	{"aws-cli", func(e endpoint, dir string) client { return newAWSCLI(e, dir) }},
	{"rclone", func(e endpoint, dir string) client { return newRclone(e, dir) }},
	{"s3cmd", func(e endpoint, dir string) client { return newS3cmd(e, dir) }},
	{"go-sdk", func(e endpoint, _ string) client { return newGoSDK(e) }},
	{"minio-go", func(e endpoint, _ string) client { return newMinioGo(e) }},
	{"mc", func(e endpoint, dir string) client { return newMC(e, dir) }},
}

// scripts are the clients in other languages. Each reads a manifest, runs
// the same checks, and prints one line of JSON for each.
var scripts = []struct {
	name    string
	command func(manifest string) []string
}{
	{"boto3", func(manifest string) []string { return []string{pythonCommand(), "py/client.py", manifest} }},
	{"js-sdk", func(manifest string) []string { return []string{"node", "js/client.mjs", manifest} }},
	{"minio-js", func(manifest string) []string { return []string{"node", "js/minio.mjs", manifest} }},
	{"ruby-sdk", func(manifest string) []string { return []string{"ruby", "rb/client.rb", manifest} }},
}

func TestClients(t *testing.T) {
	s := startStack(t)
	f := newFixture(t)
	f.Keys = storableKeys(t, s)
	f.PutIfMatch = putsIfMatch(t, s)
	for _, check := range checks {
		table.rows = append(table.rows, check.name)
	}

	for _, e := range s.endpoints {
		for _, c := range clients {
			if selectedAt(c.name, e) {
				table.addColumn(c.name + " " + e.name)
			}
		}
		for _, c := range scripts {
			if selected(c.name) {
				table.addColumn(c.name + " " + e.name)
			}
		}
	}

	t.Run("client", func(t *testing.T) {
		for _, e := range slices.Backward(s.endpoints) { // the slowest clients run over TLS
			for _, c := range clients {
				if selectedAt(c.name, e) {
					t.Run(c.name+" "+e.name, func(t *testing.T) {
						t.Parallel()
						t.Cleanup(func() { progress(t) })
						runChecks(t, &session{
							fixture: f, client: c.make(e, t.TempDir()), endpoint: e, judge: newGoSDK(e),
							bucket: "e2e-" + c.name + "-" + e.name, proxied: s.proxied, column: c.name + " " + e.name,
						})
					})
				}
			}
			for _, c := range scripts {
				if selected(c.name) {
					t.Run(c.name+" "+e.name, func(t *testing.T) {
						t.Parallel()
						m := &manifest{
							fixture: f, Endpoint: e.url, Region: region, Bucket: "e2e-" + c.name + "-" + e.name, Proxied: s.proxied,
						}
						defer progress(t)
						runScript(t, e, c.name+" "+e.name, c.command(m.write(t)))
					})
				}
			}
		}
	})
	t.Run("store", func(t *testing.T) { checkStore(t, s, f) })
	t.Run("logs", func(t *testing.T) { checkLogs(t, s) })
}

// checkLogs checks that no log contains a secret.
func checkLogs(t *testing.T, s *stack) {
	if len(s.logs) == 0 {
		t.Fatal("no logs")
	}
	for _, path := range s.logs {
		log, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range append(s.endpoints, s.store) {
			if strings.Contains(string(log), e.secret) {
				t.Errorf("a secret access key is in %s", filepath.Base(path))
			}
		}
	}
}

// progress prints the result of a test when the test ends.
func progress(t *testing.T) {
	result := "OK"
	if t.Failed() {
		result = "FAIL"
	}
	name := t.Name()
	for _, group := range []string{"TestClients/client/", "TestTools/tool/"} {
		name = strings.TrimPrefix(name, group)
	}
	fmt.Printf("%-24s %s\n", name, result)
}

// heavy clients take minutes to build, or have hundreds of megabytes of
// packages. They run in make e2e-full, or if E2E_CLIENTS names them. run.sh
// has the same list.
var heavy = []string{
	"mc", "litestream", "vmbackup", "pgbackrest", "barman-cloud", "gdal", "samtools", "git-annex", "s3backer", "docker-registry", "aptly",
	"lancedb",
}

func selected(name string) bool {
	list := strings.Fields(os.Getenv("E2E_CLIENTS"))
	if slices.Contains(list, name) {
		return true
	}
	return len(list) == 0 && (os.Getenv("E2E_FULL") != "" || !slices.Contains(heavy, name))
}

// selectedAt also skips aws-cli and s3cmd over plain HTTP. They need a second
// to start, for each of a hundred commands. boto3 uses the same library as
// aws-cli and runs over both.
func selectedAt(name string, e endpoint) bool {
	return selected(name) && (name != "aws-cli" && name != "s3cmd" || e.name == "https")
}

func pythonCommand() string {
	if python := os.Getenv("E2E_PYTHON"); python != "" {
		return python
	}
	return "python3"
}

// runScript turns each line that a script prints into a subtest.
func runScript(t *testing.T, e endpoint, column string, command []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = environment("AWS_ACCESS_KEY_ID="+e.accessKey, "AWS_SECRET_ACCESS_KEY="+e.secret, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")
	if e.ca != "" {
		cmd.Env = append(cmd.Env, "AWS_CA_BUNDLE="+e.ca, "NODE_EXTRA_CA_CERTS="+e.ca, "SSL_CERT_FILE="+e.ca)
	}

	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	lines := 0
	for scanner := bufio.NewScanner(stdout); scanner.Scan(); lines++ {
		var result struct{ Check, Status, Detail string }
		if err := json.Unmarshal(scanner.Bytes(), &result); err != nil {
			t.Errorf("the script printed %q", scanner.Text())
			continue
		}
		table.run(t, column, result.Check, func(t *testing.T) {
			switch result.Status {
			case "ok":
			case "skip":
				t.Skip(result.Detail)
			default:
				t.Error(result.Detail)
			}
		})
	}
	if err := errors.Join(cmd.Wait(), complaint(stderr.String())); err != nil {
		t.Errorf("the script ended with %v: %s", err, stderr.String())
	}

	if lines == 0 {
		t.Errorf("the script checked nothing: %s", stderr.String())
	}
}

// storableKeys returns the unusual keys that the store accepts and lists
// unchanged.
func storableKeys(t *testing.T, s *stack) []string {
	t.Helper()
	const bucket = "e2e-keys"
	c := newGoSDK(s.store)
	if err := c.createBucket(bucket); err != nil {
		t.Fatal(err)
	}

	var keys []string
	for _, key := range oddKeys {
		if why := storable(c, bucket, key); why != nil {
			table.note("the store itself does not keep the key %q: %v", key, why)
			continue
		}
		keys = append(keys, key)
	}

	if len(keys) < len(oddKeys)/2 {
		t.Errorf("the store takes %d of %d keys", len(keys), len(oddKeys))
	}
	return keys
}

// putsIfMatch reports whether the store accepts a PUT whose If-Match is met.
// Ceph 16 refuses it.
func putsIfMatch(t *testing.T, s *stack) bool {
	t.Helper()
	const bucket, key = "e2e-keys", "condition"
	c := newGoSDK(s.store)
	if err := c.put(bucket, key, []byte("1")); err != nil {
		t.Fatal(err)
	}
	a, err := c.head(bucket, key)
	if err != nil {
		t.Fatal(err)
	}

	err = c.putIf(bucket, key, []byte("2"), condition{ifMatch: a.etag})
	if err != nil {
		table.note("the store itself does not accept a PUT with the right If-Match: %s", code(err))
	}
	if removal := c.remove(bucket, key); removal != nil {
		t.Fatal(removal)
	}
	return err == nil
}

// storable checks one key. Its body is not part of the search at the end,
// because a store may keep deleted data for a while.
func storable(c *goSDK, bucket, key string) error {
	const text = "Does the store keep this key?"
	if err := c.putWith(bucket, key, []byte(text), attributes{metadata: map[string]string{"kept": "yes"}}); err != nil {
		return errors.New(code(err))
	}

	if got, err := c.get(bucket, key); err != nil || string(got) != text {
		return fmt.Errorf("reading it back: %s", code(err))
	}
	if a, err := c.head(bucket, key); err != nil || a.metadata["kept"] != "yes" {
		_ = c.remove(bucket, key)
		return errors.New("its metadata is not kept, which the envelope needs")
	}
	sizes, err := c.list(bucket, "")
	if err != nil {
		return fmt.Errorf("listing it: %s", code(err))
	}

	if _, ok := sizes[key]; !ok || len(sizes) != 1 {
		_ = c.remove(bucket, key)
		return errors.New("it is listed under another name")
	}
	return c.remove(bucket, key)
}

// checkStore searches the files of the store. Without a proxy the search
// must find plaintext, which shows that it works.
func checkStore(t *testing.T, s *stack, f *fixture) {
	files, size, found, err := searchStore(s, newSearcher(f.plaintexts()).find)
	if err != nil {
		t.Fatal(err)
	}

	if least := int64(10 << 20); size < least {
		t.Errorf("the store holds %d bytes: less than any client has stored", size)
	}
	if !s.proxied {
		if len(found) < len(f.Bodies)/2 {
			t.Errorf("plaintext was found in %d of %d files only", len(found), files)
		}
		table.note("no proxy: plaintext found in %d of %d stored files, as it must be", len(found), files)
		return
	}

	for i, name := range found {
		if i < 20 {
			t.Errorf("plaintext in the store: %s", name)
		}
	}

	if len(found) == 0 {
		table.note("no plaintext in %d stored files of %d bytes", files, size)
	} else {
		table.note("PLAINTEXT in %d of %d stored files", len(found), files)
	}
}
