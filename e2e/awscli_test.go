package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// awsCLI is the AWS command line, version 1 or 2.
type awsCLI struct {
	endpoint endpoint
	dir      string // for files to copy
	env      []string
}

func newAWSCLI(e endpoint, dir string) *awsCLI {
	c := &awsCLI{endpoint: e, dir: dir}
	// Without this setting, version 1 presigns with Signature Version 2,
	// which S3 rejects for new buckets.
	config := filepath.Join(dir, "aws.config")
	if err := os.WriteFile(config, []byte("[default]\ns3 =\n  signature_version = s3v4\n"), 0o600); err != nil {
		panic(err)
	}
	c.env = environment("AWS_ACCESS_KEY_ID="+e.accessKey, "AWS_SECRET_ACCESS_KEY="+e.secret, "AWS_DEFAULT_REGION="+region,
		"AWS_CONFIG_FILE="+config, "AWS_SHARED_CREDENTIALS_FILE="+filepath.Join(dir, "none"), "AWS_EC2_METADATA_DISABLED=true")
	if e.ca != "" {
		c.env = append(c.env, "AWS_CA_BUNDLE="+e.ca)
	}
	return c
}

func (c *awsCLI) run(args ...string) (string, error) { return c.runIn(c.env, args...) }

func (c *awsCLI) runIn(env []string, args ...string) (string, error) {
	out, err := runTool(env, nil, "aws", append([]string{"--endpoint-url", c.endpoint.url}, args...)...)
	return out, toolError(err)
}

// mustRoundTrip copies a file to an object and back. there and back are the
// options of the two copies.
func (c *awsCLI) mustRoundTrip(t *testing.T, file, object string, there, back []string) {
	t.Helper()
	if out, err := c.run(append([]string{"s3", "cp", "--no-progress", file, object}, there...)...); err != nil {
		t.Fatalf("%s: aws s3 cp: %v: %s", object, err, out)
	}
	copied := filepath.Join(t.TempDir(), "back")
	if out, err := c.run(append([]string{"s3", "cp", "--no-progress", object, copied}, back...)...); err != nil {
		t.Fatalf("%s: aws s3 cp back: %v: %s", object, err, out)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d of %d bytes come back, %v", object, len(got), len(want), err)
	}
}

// answer runs an s3api command and parses its JSON.
func (c *awsCLI) answer(to any, args ...string) error {
	out, err := c.run(append([]string{"--output", "json", "s3api"}, args...)...)
	if err != nil || strings.TrimSpace(out) == "" { // an empty listing prints nothing in version 2
		return err
	}
	return json.Unmarshal([]byte(out), to)
}

func (c *awsCLI) as(other credentials) client {
	e := c.endpoint
	e.credentials = other
	return newAWSCLI(e, c.dir)
}

func (c *awsCLI) createBucket(bucket string) error {
	_, err := c.run("s3", "mb", "s3://"+bucket)
	return err
}

func (c *awsCLI) put(bucket, key string, data []byte) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = c.run("s3", "cp", "--no-progress", file, "s3://"+bucket+"/"+key)
	return err
}

func (c *awsCLI) putAll(dir, bucket, prefix string) error {
	_, err := c.run("s3", "cp", "--no-progress", "--recursive", dir, "s3://"+bucket+"/"+prefix)
	return err
}

func (c *awsCLI) getAll(bucket, prefix, dir string) error {
	_, err := c.run("s3", "cp", "--no-progress", "--recursive", "s3://"+bucket+"/"+prefix, dir)
	return err
}

func (c *awsCLI) putWith(bucket, key string, data []byte, a attributes) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	metadata, err := json.Marshal(a.metadata)
	if err != nil {
		return err
	}
	_, err = c.run("s3", "cp", "--no-progress", file, "s3://"+bucket+"/"+key, "--metadata", string(metadata),
		"--content-type", a.contentType, "--cache-control", a.cacheControl, "--content-disposition", a.disposition,
		"--content-encoding", a.contentEncoding, "--content-language", a.contentLanguage)
	return err
}

func (c *awsCLI) get(bucket, key string) ([]byte, error) {
	out, err := c.run("s3", "cp", "s3://"+bucket+"/"+key, "-")
	return []byte(out), err
}

func (c *awsCLI) getRange(bucket, key, spec string) ([]byte, error) {
	return c.getObject(bucket, key, "--range", "bytes="+spec)
}

func (c *awsCLI) getIf(bucket, key string, when condition) ([]byte, error) {
	return c.getObject(bucket, key, when.flags()...)
}

func (c *awsCLI) getObject(bucket, key string, flags ...string) ([]byte, error) {
	file := newPath(c.dir)
	defer os.Remove(file)
	if _, err := c.run(append([]string{"s3api", "get-object", "--bucket", bucket, "--key", key, file}, flags...)...); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

func (c *awsCLI) putIf(bucket, key string, data []byte, when condition) error {
	return c.putObject(bucket, key, data, when.flags()...)
}

func (c *awsCLI) putMD5(bucket, key string, data []byte, md5 string) error {
	return c.putObject(bucket, key, data, "--content-md5", md5)
}

func (c *awsCLI) putObject(bucket, key string, data []byte, flags ...string) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	// By default, the client retries BadDigest several times, with long
	// pauses. Where BadDigest is the expected answer, one attempt is enough.
	env := append(slices.Clone(c.env), "AWS_MAX_ATTEMPTS=1")
	_, err = c.runIn(env, append([]string{"s3api", "put-object", "--bucket", bucket, "--key", key, "--body", file}, flags...)...)
	return err
}

func (when condition) flags() []string {
	var flags []string
	if when.ifMatch != "" {
		flags = append(flags, "--if-match", when.ifMatch)
	}
	if when.ifNoneMatch != "" {
		flags = append(flags, "--if-none-match", when.ifNoneMatch)
	}
	return flags
}

// algorithms are those that the client computes without an extra package.
func (c *awsCLI) algorithms() []string { return []string{"CRC32", "SHA256"} }

func (c *awsCLI) putChecksum(bucket, key string, data []byte, algorithm, value string) error {
	if value != "" {
		return c.putObject(bucket, key, data, "--checksum-"+strings.ToLower(algorithm), value)
	}
	return c.putObject(bucket, key, data, "--checksum-algorithm", algorithm)
}

func (c *awsCLI) getVerified(bucket, key string) ([]byte, map[string]string, error) {
	file := newPath(c.dir)
	defer os.Remove(file)
	var answer map[string]any
	if err := c.answer(&answer, "get-object", "--bucket", bucket, "--key", key, "--checksum-mode", "ENABLED", file); err != nil {
		return nil, nil, err
	}
	sums := make(map[string]string)
	for name, value := range answer {
		if algorithm, ok := strings.CutPrefix(name, "Checksum"); ok && algorithm != "Type" {
			sums[algorithm] = fmt.Sprint(value)
		}
	}
	data, err := os.ReadFile(file)
	return data, sums, err
}

func (c *awsCLI) head(bucket, key string) (attributes, error) {
	var answer struct {
		ContentLength                                                                         int64
		ETag, ContentType, CacheControl, ContentDisposition, ContentEncoding, ContentLanguage string
		Metadata                                                                              map[string]string
	}
	err := c.answer(&answer, "head-object", "--bucket", bucket, "--key", key)
	a := attributes{
		size: answer.ContentLength, etag: answer.ETag, contentType: answer.ContentType, cacheControl: answer.CacheControl,
		disposition: answer.ContentDisposition, contentEncoding: answer.ContentEncoding,
		contentLanguage: answer.ContentLanguage, metadata: make(map[string]string),
	}
	for name, value := range answer.Metadata {
		a.metadata[strings.ToLower(name)] = value
	}
	return a, err
}

func (c *awsCLI) list(bucket, prefix string) (map[string]int64, error) {
	sizes, _, err := c.page(bucket, prefix, "", 1000)
	return sizes, err
}

func (c *awsCLI) page(bucket, prefix, delimiter string, pageSize int) (map[string]int64, []string, error) {
	var answer struct {
		Contents []struct {
			Key  string
			Size int64
		}
		CommonPrefixes []struct{ Prefix string }
	}

	args := []string{"list-objects-v2", "--bucket", bucket, "--prefix", prefix, "--page-size", strconv.Itoa(pageSize)}
	if delimiter != "" {
		args = append(args, "--delimiter", delimiter)
	}
	if err := c.answer(&answer, args...); err != nil {
		return nil, nil, err
	}

	sizes, prefixes := make(map[string]int64), []string(nil)
	for _, object := range answer.Contents {
		sizes[object.Key] = object.Size
	}

	for _, p := range answer.CommonPrefixes {
		prefixes = append(prefixes, p.Prefix)
	}
	return sizes, prefixes, nil
}

func (c *awsCLI) putLarge(bucket, key, file string) error {
	_, err := c.run("s3", "cp", "--no-progress", file, "s3://"+bucket+"/"+key)
	return err
}

func (c *awsCLI) getLarge(bucket, key, file string) error {
	_, err := c.run("s3", "cp", "--no-progress", "s3://"+bucket+"/"+key, file)
	return err
}

func (c *awsCLI) copy(bucket, from, to string) error {
	_, err := c.run("s3", "cp", "--no-progress", "s3://"+bucket+"/"+from, "s3://"+bucket+"/"+to)
	return err
}

func (c *awsCLI) move(bucket, from, to string) error {
	_, err := c.run("s3", "mv", "--no-progress", "s3://"+bucket+"/"+from, "s3://"+bucket+"/"+to)
	return err
}

// awsTags is the form in which the s3api commands read and print tags.
type awsTags struct{ TagSet []struct{ Key, Value string } }

func (c *awsCLI) setTags(bucket, key string, tags map[string]string) error {
	var request awsTags
	for name, value := range tags {
		request.TagSet = append(request.TagSet, struct{ Key, Value string }{name, value})
	}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = c.run("s3api", "put-object-tagging", "--bucket", bucket, "--key", key, "--tagging", string(text))
	return err
}

func (c *awsCLI) tags(bucket, key string) (map[string]string, error) {
	var answer awsTags
	err := c.answer(&answer, "get-object-tagging", "--bucket", bucket, "--key", key)
	tags := make(map[string]string)
	for _, tag := range answer.TagSet {
		tags[tag.Key] = tag.Value
	}
	return tags, err
}

func (c *awsCLI) sync(dir, bucket, prefix string) (int, error) {
	out, err := c.run("s3", "sync", "--no-progress", dir, "s3://"+bucket+"/"+prefix)
	return strings.Count(out, "upload: "), err
}

func (c *awsCLI) syncBack(bucket, prefix, dir string) (int, error) {
	out, err := c.run("s3", "sync", "--no-progress", "s3://"+bucket+"/"+prefix, dir)
	return strings.Count(out, "download: "), err
}

func (c *awsCLI) remove(bucket, key string) error {
	_, err := c.run("s3", "rm", "s3://"+bucket+"/"+key)
	return err
}

func (c *awsCLI) removeMany(bucket string, keys []string) error {
	var request struct{ Objects []struct{ Key string } }
	for _, key := range keys {
		request.Objects = append(request.Objects, struct{ Key string }{key})
	}

	text, err := json.Marshal(request)
	if err != nil {
		return err
	}

	var answer struct{ Deleted, Errors []any }
	if err := c.answer(&answer, "delete-objects", "--bucket", bucket, "--delete", string(text)); err != nil {
		return err
	}

	if len(answer.Deleted) != len(keys) || len(answer.Errors) > 0 {
		return fmt.Errorf("%d of %d deleted, %d errors", len(answer.Deleted), len(keys), len(answer.Errors))
	}
	return nil
}

func (c *awsCLI) removeBucket(bucket string) error {
	_, err := c.run("s3", "rb", "s3://"+bucket)
	return err
}

// presign supports GET only.
func (c *awsCLI) presign(method, bucket, key string, valid time.Duration) (string, error) {
	if method != http.MethodGet {
		return "", errNoPresign
	}
	out, err := c.run("s3", "presign", "s3://"+bucket+"/"+key, "--expires-in", strconv.Itoa(int(valid.Seconds())))
	return strings.TrimSpace(out), err
}

// tempFile writes data to a new file in dir.
// newPath returns a path that no other check uses.
func newPath(dir string) string { return filepath.Join(dir, "got-"+rand.Text()) }

func tempFile(dir string, data []byte) (string, error) {
	f, err := os.CreateTemp(dir, "put-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = f.Write(data)
	return f.Name(), err
}
