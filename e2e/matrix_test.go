package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// operations are the columns of the matrix in the documentation, in order.
// Each names a row of the table.
var operations = []struct{ row, title string }{
	{"bucket", "buckets"},
	{"round trip", "put, get"},
	{"multipart", "multipart"},
	{"ranges", "ranges"},
	{"sizes", "head, sizes"},
	{"listing", "list"},
	{"copy", "copy"},
	{"sync", "sync twice"},
	{"verify", "verify"},
	{"delete", "delete"},
	{"metadata", "metadata"},
	{"tags", "tags"},
	{"checksums", "checksums"},
	{"content-md5", "Content-MD5"},
	{"conditions", "conditions"},
	{"presigned", "presigned"},
	{"odd keys", "odd keys"},
	{"credentials", "wrong keys"},
}

// versions are the functions that return the version of each client, in the
// order of the matrix.
var versions = []struct {
	client, title string
	version       func() string
}{
	{"aws-cli", "aws-cli", printed("aws", "--version")},
	{"boto3", "boto3 and its transfer manager", printed(pythonCommand(), "-c", "import boto3; print(boto3.__version__)")},
	{"go-sdk", "aws-sdk-go-v2, feature/s3/manager and transfermanager", module("github.com/aws/aws-sdk-go-v2/service/s3")},
	{"js-sdk", "@aws-sdk/client-s3 and lib-storage", nodeModule("js", "@aws-sdk/client-s3")},
	{"ruby-sdk", "AWS SDK for Ruby", printed("ruby", "-e", `require "aws-sdk-s3"; puts Aws::S3::GEM_VERSION`)},
	{"minio-go", "minio-go", module("github.com/minio/minio-go/v7")},
	{"minio-js", "minio-js", nodeModule("js", "minio")},
	{"mc", "mc", module("github.com/minio/mc")},
	{"rclone", "rclone, rclone mount", printed("rclone", "version")},
	{"s3cmd", "s3cmd", printed("s3cmd", "--version")},
	{"s4cmd", "s4cmd", printed("s4cmd", "--version")},
	{"smart_open", "smart_open", printed("/usr/bin/python3", "-c", "import smart_open; print(smart_open.__version__)")},
	{"s3-sync-client", "s3-sync-client", nodeModule("js", "s3-sync-client")},
	{"multer-s3", "multer-s3", nodeModule("js", "multer-s3")},
	{"tus", "tus-js-client and @tus/s3-store", nodeModule("js", "@tus/s3-store")},
	{"restic", "restic", printed("restic", "version")},
	{"duplicity", "duplicity", printed("duplicity", "--version")},
	{"litestream", "litestream", module("github.com/benbjohnson/litestream")},
	{"pgbackrest", "pgBackRest, of PostgreSQL", printed("pgbackrest", "version")},
	{"barman-cloud", "barman-cloud, of PostgreSQL", printed("barman-cloud-backup", "--version")},
	{"vmbackup", "vmbackup, of VictoriaMetrics", module("github.com/VictoriaMetrics/VictoriaMetrics/app/vmbackup")},
	{"git-annex", "git-annex, its own test of remotes", printed("git-annex", "version")},
	{"s3fs", "s3fs", printed("s3fs", "--version")},
	{"s3backer", "s3backer, by virtual hosts", printed("s3backer", "--version")},
	{"registry", "distribution (container registry), its S3 driver", module("github.com/distribution/distribution/v3")},
	{"docker-registry", "Docker registry, with skopeo", printed("docker-registry", "--version")},
	{"aptly", "aptly", printed("aptly", "version")},
	{"thanos", "Thanos objstore, its acceptance tests", module("github.com/thanos-io/objstore")},
	{"parquet-go", "parquet-go over ranged reads", module("github.com/parquet-go/parquet-go")},
	{"lancedb", "LanceDB", nodeModule("js/lancedb", "@lancedb/lancedb")},
	{"gdal", "GDAL /vsis3", printed("gdalinfo", "--version")},
	{"samtools", "samtools (reads only)", printed("samtools", "--version")},
}

// printed returns the first word with a digit in the output of a program.
func printed(command string, args ...string) func() string {
	return func() string {
		out, _ := exec.Command(command, args...).CombinedOutput()
		for word := range strings.FieldsSeq(string(out)) {
			if _, after, ok := strings.Cut(word, "/"); ok {
				word = after
			}
			if word = strings.TrimPrefix(strings.TrimPrefix(word, "v"), "V"); word != "" && word[0] >= '0' && word[0] <= '9' {
				return strings.TrimRight(word, ",")
			}
		}
		return "?"
	}
}

func module(path string) func() string { return func() string { return moduleVersion(path) } }

func nodeModule(dir, name string) func() string {
	return printed("node", "-p", fmt.Sprintf("JSON.parse(fs.readFileSync('%s/node_modules/%s/package.json')).version", dir, name))
}

// matrixNotes is the text below the matrix.
const matrixNotes = `
✓: the client does this with its default settings, apart from endpoint, credentials and path style, and every byte, size and answer
is right; nothing that it prints is about ETags, MD5 or checksums. Blank: it has no such operation, or the tests do not ask for it. The clients from aws-cli to
s3cmd run over HTTP and over TLS (aws-cli and s3cmd over TLS only); all others run at two replicas behind a balancer. At the end, nothing that
they stored is in the store as plaintext.

- **multipart**: a file that is too large for one request, up and down, as the client does it by itself. **copy**: by the server, of
  single-PUT and multipart objects; also renames, and copies of parts. **sync twice**: the second run copies nothing, either way.
- **verify**: the client's own comparison of all content: ''rclone check --download'', ''restic check --read-data'', ''duplicity verify --compare-data''.
- **wrong keys**: a wrong secret and an unknown access key are refused, with the code that S3 has for each.

''rclone check'' without ''--download'' compares sizes of objects that were put in one request, and says of these that
their hashes could not be checked: rclone takes the ETag for an MD5 where it looks like one, and the proxy's never does. It is the same with
SSE-KMS at AWS. Objects that rclone puts in parts carry their MD5 in metadata, and are compared by it.

With minio-js, ''putObject'' of a stream whose length is not told must be of 5 MiB or more, or be given the length: without it, minio-js sends
parts, begins to number them at 2, and the proxy refuses an upload with a gap whose last part is too short to be followed by another.

- **s4cmd** takes the ETag for an MD5, so ''s4cmd sync'' copies every file again. It is the same with SSE-KMS at AWS.
- **s3fs** with ''-o enable_content_md5'' fails with EIO, and **boto** 2.49 reports a mismatch: both compare the ETag with their MD5.
- **multer-s3** waits for ever for the first byte of an empty file, and **@tus/s3-store** stores no empty files, at any store.
- **git-annex** 10.20230126 signs no port with Signature Version 4: it needs port 80 or 443, at any store.
- **samtools** 1.16 fails to write to an endpoint with path style over plain HTTP, at any store.

''make e2e'' runs those that are quick to install. ''make e2e-full'' also runs mc, litestream, vmbackup, pgBackRest, barman-cloud, GDAL, samtools,
git-annex, s3backer, the Docker registry, aptly and LanceDB. ''STORE=minio'', ''seaweedfs'' or ''ceph'' has another store in place of versitygw.

Not run, as the tests install from Debian, npm and the Go module proxy only: aws-cli version 2 as AWS packages it (a test sends what it sends,
CRC64NVME in trailers included), and DuckDB and Arrow (DuckDB's npm package fetches its S3 reader from a server of its own; parquet-go reads
Parquet by ranges in their place).
`

// cell is the result of a client in a row. "FAIL" takes precedence over
// "ok", and "ok" over "-".
func (r *report) cell(client, row string) string {
	result := "-"
	for at, one := range r.cells {
		if name, _, _ := strings.Cut(at[1], " "); name != client || at[0] != row || one == "-" || result == "FAIL" {
			continue
		}
		result = one
	}
	return result
}

// matrix returns a line for each client that ran, by client.
func (r *report) matrix() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := make(map[string]string)
	for _, v := range versions {
		cells, ran := "", false
		for _, operation := range operations {
			result := r.cell(v.client, operation.row)
			ran = ran || result != "-"
			cells += " " + map[string]string{"ok": "✓", "FAIL": "fails"}[result] + " |"
		}
		if ran {
			lines[v.client] = fmt.Sprintf("| %s | %s |%s\n", v.title, v.version(), cells)
		}
	}
	return lines
}

// updateMatrix compares the lines of the clients that ran with the
// documentation, except for versions. With E2E_UPDATE=1, it writes them
// instead.
func (r *report) updateMatrix() error {
	text, err := os.ReadFile(compatibility)
	if err != nil {
		return err
	}

	opening, closing := []byte("<!-- clients -->\n"), []byte("<!-- /clients -->")
	before, rest, ok := bytes.Cut(text, opening)
	old, after, ok2 := bytes.Cut(rest, closing)
	if !ok || !ok2 {
		return errors.New(compatibility + " has no section clients")
	}

	section := mergeMatrix(string(old), r.matrix())
	if withoutVersions(section) == withoutVersions(string(old)) && os.Getenv("E2E_UPDATE") == "" {
		return nil
	}

	if os.Getenv("E2E_UPDATE") == "" {
		return fmt.Errorf("the matrix in %s is not what this run says; E2E_UPDATE=1 writes:\n%s", compatibility, section)
	}
	return os.WriteFile(compatibility, slices.Concat(before, opening, []byte(section), closing, after), 0o600)
}

// mergeMatrix keeps the old lines of clients that did not run.
func mergeMatrix(old string, lines map[string]string) string {
	head, rule := "| client | version |", "| --- | --- |"
	for _, operation := range operations {
		head, rule = head+" "+operation.title+" |", rule+" :-: |"
	}
	section := head + "\n" + rule + "\n"
	for _, v := range versions {
		kept := ""
		for line := range strings.Lines(old) {
			if strings.HasPrefix(line, "| "+v.title+" | ") {
				kept = line
			}
		}
		section += cmp.Or(lines[v.client], kept)
	}
	return section + strings.ReplaceAll(matrixNotes, "''", "`")
}

func withoutVersions(section string) string {
	var b strings.Builder
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) > 3 {
			line = strings.Join(append(cells[:2:2], cells[3:]...), "|")
		}
		b.WriteString(line)
	}
	return b.String()
}

// matrixTests selects all tests that fill the matrix. To write the matrix:
// E2E_FULL=1 E2E_UPDATE=1 e2e/run.sh -run
// 'TestClients|TestTools|TestRegistry'.
const matrixTests = "TestClients|TestTools|TestRegistry"

// whole reports whether a run covered everything in the matrix.
func whole(pattern string) bool {
	return (pattern == "" || pattern == matrixTests) && os.Getenv("E2E_CLIENTS") == "" && os.Getenv("E2E_TARGET") != "store" && os.Getenv("STORE") == "" &&
		filepath.IsAbs(os.Getenv("E2E_BIN"))
}
