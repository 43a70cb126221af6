package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// s3cmd is s3cmd, configured as "s3cmd --configure" does for an endpoint
// without virtual hosts.
type s3cmd struct {
	endpoint endpoint
	dir      string
	config   string
}

func newS3cmd(e endpoint, dir string) *s3cmd {
	text := fmt.Appendf(nil, "[default]\naccess_key = %s\nsecret_key = %s\nhost_base = %s\nhost_bucket = %s\nbucket_location = %s\nuse_https = %t\n",
		e.accessKey, e.secret, e.host(), e.host(), region, e.ca != "")
	if e.ca != "" {
		text = fmt.Appendf(text, "ca_certs_file = %s\n", e.ca)
	}
	config, err := tempFile(dir, text)
	if err != nil {
		panic(err)
	}
	return &s3cmd{endpoint: e, dir: dir, config: config}
}

func (c *s3cmd) run(args ...string) (string, error) {
	args = append([]string{"--config", c.config, "--no-progress"}, args...)
	out, err := runTool(environment(), nil, "s3cmd", args...)
	return out, toolError(err)
}

func (c *s3cmd) as(other credentials) client {
	e := c.endpoint
	e.credentials = other
	return newS3cmd(e, c.dir)
}

func (c *s3cmd) createBucket(bucket string) error {
	_, err := c.run("mb", "s3://"+bucket)
	return err
}

func (c *s3cmd) put(bucket, key string, data []byte) error {
	return c.putFile(bucket, key, data)
}

func (c *s3cmd) putWith(bucket, key string, data []byte, a attributes) error {
	flags := []string{
		"--mime-type=" + a.contentType, "--add-header=Cache-Control:" + a.cacheControl,
		"--add-header=Content-Disposition:" + a.disposition, "--add-header=Content-Language:" + a.contentLanguage,
		"--add-header=Content-Encoding:" + a.contentEncoding,
	}
	for name, value := range a.metadata {
		flags = append(flags, "--add-header=x-amz-meta-"+name+":"+value)
	}
	return c.putFile(bucket, key, data, flags...)
}

func (c *s3cmd) putFile(bucket, key string, data []byte, flags ...string) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = c.run(append([]string{"put", file, "s3://" + bucket + "/" + key}, flags...)...)
	return err
}

func (c *s3cmd) get(bucket, key string) ([]byte, error) {
	file := newPath(c.dir)
	defer os.Remove(file)
	if _, err := c.run("get", "--force", "s3://"+bucket+"/"+key, file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// resume continues a download that already has the bytes in have. It sends a
// range with an open end.
func (c *s3cmd) resume(bucket, key string, have []byte) ([]byte, error) {
	file := newPath(c.dir)
	defer os.Remove(file)
	if err := os.WriteFile(file, have, 0o600); err != nil {
		return nil, err
	}
	if _, err := c.run("get", "--continue", "s3://"+bucket+"/"+key, file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

func (c *s3cmd) list(bucket, prefix string) (map[string]int64, error) {
	sizes, _, err := c.ls("--recursive", "s3://"+bucket+"/"+prefix)
	return sizes, err
}

// page ignores the page size: s3cmd accepts pages of any size from the
// server.
func (c *s3cmd) page(bucket, prefix, delimiter string, _ int) (map[string]int64, []string, error) {
	if delimiter == "" {
		return c.ls("--recursive", "s3://"+bucket+"/"+prefix)
	}
	return c.ls("s3://" + bucket + "/" + prefix)
}

// ls parses lines of "DATE TIME SIZE s3://BUCKET/KEY" and "DIR
// s3://BUCKET/PREFIX/".
func (c *s3cmd) ls(args ...string) (map[string]int64, []string, error) {
	out, err := c.run(append([]string{"ls"}, args...)...)
	if err != nil {
		return nil, nil, err
	}

	sizes, prefixes := make(map[string]int64), []string(nil)
	for line := range strings.Lines(out) {
		before, uri, ok := strings.Cut(strings.TrimRight(line, "\n"), "s3://")
		if !ok {
			return nil, nil, fmt.Errorf("s3cmd ls printed %q", line)
		}
		_, key, _ := strings.Cut(uri, "/")
		fields := strings.Fields(before)
		if fields[len(fields)-1] == "DIR" {
			prefixes = append(prefixes, key)
			continue
		}
		size, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("s3cmd ls printed %q", line)
		}
		sizes[key] = size
	}
	return sizes, prefixes, nil
}

func (c *s3cmd) sync(dir, bucket, prefix string) (int, error) {
	out, err := c.run("sync", dir+"/", "s3://"+bucket+"/"+prefix)
	return strings.Count(out, "upload: "), err
}

func (c *s3cmd) syncBack(bucket, prefix, dir string) (int, error) {
	out, err := c.run("sync", "s3://"+bucket+"/"+prefix, dir+"/")
	return strings.Count(out, "download: "), err
}

func (c *s3cmd) putLarge(bucket, key, file string) error {
	_, err := c.run("put", file, "s3://"+bucket+"/"+key)
	return err
}

func (c *s3cmd) getLarge(bucket, key, file string) error {
	_, err := c.run("get", "s3://"+bucket+"/"+key, file)
	return err
}

func (c *s3cmd) copy(bucket, from, to string) error {
	_, err := c.run("cp", "s3://"+bucket+"/"+from, "s3://"+bucket+"/"+to)
	return err
}

func (c *s3cmd) move(bucket, from, to string) error {
	_, err := c.run("mv", "s3://"+bucket+"/"+from, "s3://"+bucket+"/"+to)
	return err
}

func (c *s3cmd) remove(bucket, key string) error {
	_, err := c.run("del", "s3://"+bucket+"/"+key)
	return err
}

func (c *s3cmd) removeMany(bucket string, keys []string) error {
	args := []string{"del"}
	for _, key := range keys {
		args = append(args, "s3://"+bucket+"/"+key)
	}
	_, err := c.run(args...)
	return err
}

func (c *s3cmd) removeBucket(bucket string) error {
	_, err := c.run("rb", "s3://"+bucket)
	return err
}
