package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tools are programs that build on S3. Their results are in the rows of the
// checks that match best.
var tools = []struct {
	name string
	run  func(t *testing.T, u *use)
}{
	{"aws-cli", awsSync},
	{"rclone", rcloneUse},
	{"s3cmd", s3cmdSync},
	{"mc", mcUse},
	{"restic", resticBackup},
	{"duplicity", duplicityBackup},
	{"litestream", litestreamReplica},
	{"s3fs", s3fsMount},
	{"thanos", thanosAcceptance},
	{"parquet-go", parquetColumns},
	{"s4cmd", s4cmdSync},
	{"smart_open", library("/usr/bin/python3", "py/smart.py")}, // Debian's
	{"s3-sync-client", library("node", "js/syncclient.mjs")},
	{"multer-s3", library("node", "js/multer.mjs")},
	{"tus", library("node", "js/tus.mjs")},
	{"lancedb", library("node", "js/lancedb/table.mjs")},
	{"gdal", gdalRaster},
	{"samtools", samtoolsReads},
	{"pgbackrest", pgBackRest},
	{"barman-cloud", barmanCloud},
	{"vmbackup", vmBackup},
	{"s3backer", s3backerMount},
	{"git-annex", gitAnnex},
	{"docker-registry", dockerRegistry},
	{"aptly", aptlyPublish},
}

// use is a tool at the cluster, with its own bucket.
type use struct {
	name    string
	c       *cluster
	bucket  string
	fixture *fixture
}

// library returns the test of a library in another language. As the scripts
// of TestClients, its script reads a manifest and prints its results.
func library(command ...string) func(t *testing.T, u *use) {
	return func(t *testing.T, u *use) {
		m := &manifest{
			fixture: u.fixture, Endpoint: u.c.endpoint.url, Region: region, Bucket: u.bucket, Proxied: u.c.store.proxied,
		}
		runScript(t, u.c.endpoint, u.name+" cluster", append(slices.Clone(command), m.write(t)))
	}
}

// does runs one step of a tool and records its result in the table.
func (u *use) does(t *testing.T, row string, step func(t *testing.T)) {
	t.Helper()
	table.run(t, u.name+" cluster", row, step)
}

// TestTools runs typical nightly jobs: a sync whose second run must copy
// nothing, a comparison of every byte, backups, mounted buckets, databases,
// and libraries that store files. At the end, nothing that they have stored
// is in the store as plaintext.
func TestTools(t *testing.T) {
	c, f := startCluster(t), newFixture(t)
	for _, tool := range tools {
		if selected(tool.name) {
			table.addColumn(tool.name + " cluster")
		}
	}

	t.Run("tool", func(t *testing.T) {
		for _, tool := range tools {
			if !selected(tool.name) {
				continue
			}
			t.Run(tool.name, func(t *testing.T) {
				t.Parallel()
				defer progress(t)
				u := &use{tool.name, c, "tool-" + strings.ReplaceAll(tool.name, "_", "-"), f}
				if err := newGoSDK(c.endpoint).createBucket(u.bucket); err != nil {
					t.Fatal(err)
				}
				tool.run(t, u)
			})
		}
	})
	t.Run("store", func(t *testing.T) { searchForObjects(t, c) })
}

// must runs a program to its end.
func must(t *testing.T, env []string, command string, args ...string) string {
	t.Helper()
	out, err := runTool(env, nil, command, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// awsEnvironment returns an environment with credentials in the variables
// that the AWS SDKs read.
func (u *use) awsEnvironment(extra ...string) []string {
	e := u.c.endpoint
	return environment(append(extra, "AWS_ACCESS_KEY_ID="+e.accessKey, "AWS_SECRET_ACCESS_KEY="+e.secret, "AWS_DEFAULT_REGION="+region,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")...)
}

// newTreeSize is the size of all files of newTree.
const newTreeSize = 1 + 5*mib - 1 + 5*mib + 8*mib + 8*mib + 1 + 16*mib + 20*mib + 3

// newTree makes a directory of files. Their sizes are close to those at
// which clients change their behavior.
func newTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, size := range map[string]int{
		"empty": 0, "byte": 1, "a/5M-1": 5*mib - 1, "a/5M": 5 * mib, "a/8M": 8 * mib, "a/8M+1": 8*mib + 1, "b/16M": 16 * mib,
		"b/20M+3": 20*mib + 3,
	} {
		writeRandom(t, filepath.Join(dir, name), size)
	}
	return dir
}

func writeRandom(t *testing.T, path string, size int) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// sameTree compares two directories byte for byte.
func sameTree(t *testing.T, a, b string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(a, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(a, path)
		if err != nil {
			return err
		}
		if got, err := os.ReadFile(filepath.Join(b, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(want), err)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files compared, %v", files, err)
	}
}

func awsSync(t *testing.T, u *use) {
	cli := newAWSCLI(u.c.endpoint, t.TempDir())
	sync := func(t *testing.T, from, to string, more ...string) string {
		t.Helper()
		out, err := cli.run(append([]string{"s3", "sync", "--no-progress", from, to}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	tree, back, at := newTree(t), t.TempDir(), "s3://"+u.bucket+"/tree"
	u.does(t, "sync", func(t *testing.T) {
		if out := sync(t, tree, at); strings.Count(out, "upload:") != 8 {
			t.Errorf("the first sync says %q", out)
		}
		if out := sync(t, tree, at); out != "" {
			t.Errorf("the second sync says %q", out)
		}
		if out := sync(t, tree, at, "--size-only"); out != "" {
			t.Errorf("the second sync by size says %q", out)
		}
		if out := sync(t, at, back); strings.Count(out, "download:") != 8 {
			t.Errorf("the first sync back says %q", out)
		}
		if out := sync(t, at, back); out != "" {
			t.Errorf("the second sync back says %q", out)
		}
		sameTree(t, tree, back)
	})

	u.does(t, "copy", func(t *testing.T) {
		if out := sync(t, at, "s3://"+u.bucket+"/copy"); strings.Count(out, "copy:") != 8 {
			t.Errorf("the first sync within the store says %q", out)
		}
		if out := sync(t, at, "s3://"+u.bucket+"/copy"); out != "" {
			t.Errorf("the second sync within the store says %q", out)
		}
	})
}

// rcloneUse copies, syncs, compares, and mounts.
func rcloneUse(t *testing.T, u *use) {
	r := newRclone(u.c.endpoint, t.TempDir())
	tree, at := newTree(t), "e2e:"+u.bucket+"/tree"
	run := func(t *testing.T, args ...string) {
		t.Helper()
		if out, err := r.run(nil, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}

	u.does(t, "multipart", func(t *testing.T) {
		run(t, "copy", "--s3-upload-cutoff", "5Mi", "--s3-chunk-size", "5Mi", tree, at)
	})
	u.does(t, "verify", func(t *testing.T) {
		run(t, "check", "--download", tree, at)
		run(t, "check", "--size-only", tree, at)
		run(t, "check", tree, at)
	})

	u.does(t, "sync", func(t *testing.T) {
		if copied, err := r.transfers("sync", tree, at); err != nil || copied != 0 {
			t.Errorf("a sync of what is there copied %d files: %v", copied, err)
		}
	})

	u.does(t, "copy", func(t *testing.T) {
		run(t, "copy", at, "e2e:"+u.bucket+"/copy")
		run(t, "check", "--download", at, "e2e:"+u.bucket+"/copy")
	})

	mount := mounted(t, func(point string) ([]string, string, []string) {
		return r.env, "rclone", []string{"mount", "--vfs-cache-mode", "writes", "e2e:" + u.bucket, point}
	})
	u.does(t, "ranges", func(t *testing.T) {
		readAtRandom(t, filepath.Join(mount, "tree/b/20M+3"), filepath.Join(tree, "b/20M+3"))
	})
}

func s3cmdSync(t *testing.T, u *use) {
	c := newS3cmd(u.c.endpoint, t.TempDir())
	tree, back := newTree(t), t.TempDir()
	u.does(t, "sync", func(t *testing.T) {
		for _, want := range []int{8, 0} {
			if copied, err := c.sync(tree, u.bucket, "tree/"); err != nil || copied != want {
				t.Errorf("sync copied %d files, not %d: %v", copied, want, err)
			}
		}
		for _, want := range []int{8, 0} {
			if copied, err := c.syncBack(u.bucket, "tree/", back); err != nil || copied != want {
				t.Errorf("sync back copied %d files, not %d: %v", copied, want, err)
			}
		}
		sameTree(t, tree, back)
	})
}

// mcUse mirrors twice and compares.
func mcUse(t *testing.T, u *use) {
	c := newMC(u.c.endpoint, t.TempDir())
	tree, back := newTree(t), t.TempDir()
	u.does(t, "sync", func(t *testing.T) {
		if copied, err := c.sync(tree, u.bucket, "tree/"); err != nil || copied != 8 {
			t.Errorf("mirror copied %d files: %v", copied, err)
		}
		if copied, err := c.syncBack(u.bucket, "tree/", back); err != nil || copied != 8 {
			t.Errorf("mirror back copied %d files: %v", copied, err)
		}
		if copied, err := c.syncBack(u.bucket, "tree/", back); err != nil || copied != 0 {
			t.Errorf("the second mirror back copied %d files: %v", copied, err)
		}
		sameTree(t, tree, back)
	})
}

// s4cmdSync copies directories. The second sync copies everything again,
// because s4cmd takes the ETag for an MD5.
func s4cmdSync(t *testing.T, u *use) {
	tree, back, at := newTree(t), t.TempDir(), "s3://"+u.bucket+"/tree"
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		return must(t, u.awsEnvironment("HOME="+t.TempDir()), "s4cmd", append(args, "--endpoint-url", u.c.endpoint.url)...)
	}

	u.does(t, "round trip", func(t *testing.T) {
		for range 2 {
			run(t, "dsync", tree, at)
			run(t, "dsync", at, back)
			sameTree(t, tree, back)
		}
	})
	u.does(t, "listing", func(t *testing.T) {
		if out := run(t, "ls", "--recursive", at); strings.Count(out, u.bucket+"/tree/") != 8 || !strings.Contains(out, fmt.Sprint(20*mib+3)) {
			t.Errorf("ls says %q", out)
		}
		if out := run(t, "du", "--recursive", at); !strings.Contains(out, fmt.Sprint(newTreeSize)) {
			t.Errorf("du says %q", out)
		}
	})
	u.does(t, "copy", func(t *testing.T) {
		run(t, "cp", "--recursive", at+"/a", "s3://"+u.bucket+"/copy")
		run(t, "mv", "s3://"+u.bucket+"/copy/5M", "s3://"+u.bucket+"/copy/moved")
		run(t, "get", "s3://"+u.bucket+"/copy/moved", filepath.Join(back, "moved"))
		must(t, environment(), "cmp", filepath.Join(tree, "a/5M"), filepath.Join(back, "moved"))
	})
	u.does(t, "delete", func(t *testing.T) {
		run(t, "del", "--recursive", "s3://"+u.bucket+"/copy/")
		if out := run(t, "ls", "--recursive", "s3://"+u.bucket+"/copy/"); strings.TrimSpace(out) != "" {
			t.Errorf("left: %q", out)
		}
	})
}
