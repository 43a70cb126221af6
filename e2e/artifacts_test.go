package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gitAnnex runs git-annex's own test of a remote.
func gitAnnex(t *testing.T, u *use) {
	dir, balancer := t.TempDir(), u.c.balancer.handler()
	// With Signature Version 4, this git-annex signs the host without the
	// port, so only port 80 works. Here, another port stands for it.
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Host, _, _ = strings.Cut(r.Host, ":")
		balancer.ServeHTTP(w, r)
	}))
	defer front.Close()
	host, port, _ := strings.Cut(strings.TrimPrefix(front.URL, "http://"), ":")
	env := u.awsEnvironment("HOME="+dir, "GIT_AUTHOR_NAME=e2e", "GIT_AUTHOR_EMAIL=e2e@localhost", "GIT_COMMITTER_NAME=e2e", "GIT_COMMITTER_EMAIL=e2e@localhost")
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		return must(t, env, "git", append([]string{"-C", dir}, args...)...)
	}

	u.does(t, "round trip", func(t *testing.T) {
		run(t, "init", "--quiet")
		run(t, "annex", "init", "e2e")
		run(t, "config", "annex.security.allowed-ip-addresses", host) // by default, none of this machine
		run(t, "annex", "initremote", "store", "type=S3", "encryption=none", "protocol=http", "host="+host, "port="+port, "requeststyle=path",
			"signature=v4", "datacenter="+region, "bucket="+u.bucket, "partsize=8MiB")
		run(t, "annex", "testremote", "--fast", "--size=10MB", "store") // chunks, encryption, exports, deletion
	})

	file := filepath.Join(dir, "large")
	writeRandom(t, file, 20*mib)
	u.does(t, "multipart", func(t *testing.T) {
		run(t, "annex", "add", "large")
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		run(t, "annex", "move", "--to=store", "large")
		run(t, "annex", "fsck", "--from=store", "large") // downloads it
		run(t, "annex", "get", "large")
		got, err := os.ReadFile(file)
		same(t, "large", got, err, want)
	})
	u.does(t, "delete", func(t *testing.T) { run(t, "annex", "drop", "--from=store", "--force", "large") })
}

// dockerRegistry pushes an image to a container registry that stores it in
// a bucket, and pulls it.
func dockerRegistry(t *testing.T, u *use) {
	dir, address := t.TempDir(), freeAddress(t)
	config := filepath.Join(dir, "config.yml")
	e := u.c.endpoint
	text := fmt.Sprintf(`version: 0.1
storage:
  s3: {accesskey: %q, secretkey: %q, region: %s, regionendpoint: %q, bucket: %q, secure: false}
  delete: {enabled: true}
http: {addr: %q}
`, e.accessKey, e.secret, region, e.url, u.bucket, address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	start(t, "docker-registry", environment(), "docker-registry", "serve", config).waitFor(t, "http://"+address+"/v2/")
	image, back, at := filepath.Join(dir, "image"), filepath.Join(dir, "back"), "docker://"+address+"/app:v1"
	writeImage(t, image)
	skopeo := func(t *testing.T, args ...string) string {
		t.Helper()
		return must(t, environment("HOME="+dir), "skopeo", append([]string{"--insecure-policy"}, args...)...)
	}
	u.does(t, "multipart", func(t *testing.T) {
		skopeo(t, "copy", "--dest-tls-verify=false", "oci:"+image+":v1", at)
		skopeo(t, "copy", "--src-tls-verify=false", at, "oci:"+back+":v1")
		sameTree(t, filepath.Join(image, "blobs"), filepath.Join(back, "blobs"))
	})
	u.does(t, "listing", func(t *testing.T) {
		if out := skopeo(t, "list-tags", "--tls-verify=false", "docker://"+address+"/app"); !strings.Contains(out, `"v1"`) {
			t.Error(out)
		}
	})

	u.does(t, "delete", func(t *testing.T) {
		skopeo(t, "delete", "--tls-verify=false", at)
		must(t, environment(), "docker-registry", "garbage-collect", config)
		left, err := newGoSDK(e).list(u.bucket, "")
		for key := range left {
			if strings.HasPrefix(key, "docker/registry/v2/blobs/") {
				t.Errorf("left: %s", key)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// writeImage writes a container image with two layers, as an OCI layout.
func writeImage(t *testing.T, dir string) {
	t.Helper()
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	write := func(path string, data []byte) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, data []byte) descriptor {
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		write(filepath.Join(dir, "blobs", "sha256", sum), data)
		return descriptor{"application/vnd.oci.image." + mediaType, "sha256:" + sum, len(data), nil}
	}
	document := func(value any) []byte {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}

	var layers []descriptor
	var plain []string
	for _, size := range []int{25*mib + 7, 100} {
		packed, sum := layer(t, size)
		layers, plain = append(layers, blob("layer.v1.tar+gzip", packed)), append(plain, sum)
	}
	config := blob("config.v1+json", document(map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": plain},
	}))
	m := blob("manifest.v1+json", document(map[string]any{"schemaVersion": 2, "config": config, "layers": layers}))
	m.Annotations = map[string]string{"org.opencontainers.image.ref.name": "v1"}
	write(filepath.Join(dir, "index.json"), document(map[string]any{"schemaVersion": 2, "manifests": []descriptor{m}}))
	write(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion": "1.0.0"}`))
}

// layer returns a packed file of random bytes, and the digest of the archive
// before it was compressed.
func layer(t *testing.T, size int) (packed []byte, digest string) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	var archive, out bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file-%d", size), Mode: 0o644, Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	z := gzip.NewWriter(&out)
	if _, err := z.Write(archive.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), fmt.Sprintf("sha256:%x", sha256.Sum256(archive.Bytes()))
}

// aptlyPublish publishes a repository of Debian packages in a bucket, adds a
// package, and removes the repository.
func aptlyPublish(t *testing.T, u *use) {
	dir := t.TempDir()
	e := u.c.endpoint
	config, err := json.Marshal(map[string]any{
		"rootDir": filepath.Join(dir, "aptly"), "gpgDisableSign": true, "gpgDisableVerify": true,
		"S3PublishEndpoints": map[string]any{"store": map[string]any{
			"region": region, "bucket": u.bucket, "endpoint": e.url, "awsAccessKeyID": e.accessKey, "awsSecretAccessKey": e.secret,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "aptly.conf")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}

	run := func(t *testing.T, args ...string) string {
		t.Helper()
		return must(t, environment(), "aptly", append([]string{"-config=" + path}, args...)...)
	}
	sdk := newGoSDK(e)
	published := func(t *testing.T, name, file string) {
		t.Helper()
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sdk.get(u.bucket, "pool/main/"+name[:1]+"/"+name+"/"+filepath.Base(file))
		same(t, name, got, err, want)
		index, err := sdk.get(u.bucket, "dists/stable/main/binary-amd64/Packages")
		if err != nil || !strings.Contains(string(index), fmt.Sprintf("SHA256: %x", sha256.Sum256(want))) {
			t.Errorf("%s is not in the index: %v, %s", name, err, index)
		}
	}

	first, second := debianPackage(t, dir, "first", 6*mib), debianPackage(t, dir, "second", 1000)
	u.does(t, "round trip", func(t *testing.T) {
		run(t, "repo", "create", "-distribution=stable", "-component=main", "things")
		run(t, "repo", "add", "things", first)
		run(t, "publish", "repo", "-architectures=amd64", "-skip-signing", "things", "s3:store:")
		published(t, "first", first)
	})
	u.does(t, "round trip", func(t *testing.T) {
		run(t, "repo", "add", "things", second)
		run(t, "publish", "update", "-skip-signing", "stable", "s3:store:")
		published(t, "first", first)
		published(t, "second", second)
	})

	u.does(t, "delete", func(t *testing.T) {
		run(t, "publish", "drop", "stable", "s3:store:")
		if left, err := sdk.list(u.bucket, ""); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// debianPackage makes a package with one file of random bytes.
func debianPackage(t *testing.T, dir, name string, size int) string {
	t.Helper()
	root := filepath.Join(dir, name)
	writeRandom(t, filepath.Join(root, "usr/share", name), size)
	if err := os.MkdirAll(filepath.Join(root, "DEBIAN"), 0o755); err != nil { // dpkg-deb asks for it
		t.Fatal(err)
	}
	control := "Package: " + name + "\nVersion: 1.0\nArchitecture: amd64\nMaintainer: e2e <e2e@localhost>\nDescription: test\n"
	if err := os.WriteFile(filepath.Join(root, "DEBIAN/control"), []byte(control), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name+"_1.0_amd64.deb")
	must(t, environment(), "dpkg-deb", "--build", root, path)
	return path
}
