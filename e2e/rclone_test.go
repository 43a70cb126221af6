package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// rclone is rclone with its s3 backend, configured as "rclone config" does
// for a provider that is not listed.
type rclone struct {
	endpoint endpoint
	dir      string
	env      []string
}

func newRclone(e endpoint, dir string) *rclone {
	config, err := tempFile(dir, fmt.Appendf(nil,
		"[e2e]\ntype = s3\nprovider = Other\naccess_key_id = %s\nsecret_access_key = %s\nendpoint = %s\nregion = %s\nlocation_constraint = %s\n",
		e.accessKey, e.secret, e.url, region, region))
	if err != nil {
		panic(err)
	}
	c := &rclone{endpoint: e, dir: dir, env: environment("RCLONE_CONFIG=" + config)}
	if e.ca != "" {
		c.env = append(c.env, "RCLONE_CA_CERT="+e.ca)
	}
	return c
}

func (c *rclone) run(stdin []byte, args ...string) (string, error) {
	// Without these flags, rclone retries for a minute. The tests check the
	// first error.
	args = append([]string{"--retries", "1", "--low-level-retries", "1"}, args...)
	out, err := runTool(c.env, stdin, "rclone", args...)
	return out, toolError(err)
}

func (c *rclone) as(other credentials) client {
	e := c.endpoint
	e.credentials = other
	return newRclone(e, c.dir)
}

func (c *rclone) createBucket(bucket string) error {
	_, err := c.run(nil, "mkdir", "e2e:"+bucket)
	return err
}

func (c *rclone) put(bucket, key string, data []byte) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = c.run(nil, "copyto", file, "e2e:"+bucket+"/"+key)
	return err
}

func (c *rclone) putWith(bucket, key string, data []byte, a attributes) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	args := []string{"copyto", file, "e2e:" + bucket + "/" + key}
	headers := map[string]string{
		"Content-Type": a.contentType, "Cache-Control": a.cacheControl, "Content-Disposition": a.disposition,
		"Content-Encoding": a.contentEncoding, "Content-Language": a.contentLanguage,
	}

	for name, value := range a.metadata {
		headers["X-Amz-Meta-"+name] = value
	}
	for name, value := range headers {
		args = append(args, "--header-upload", name+": "+value)
	}
	_, err = c.run(nil, args...)
	return err
}

func (c *rclone) get(bucket, key string) ([]byte, error) {
	file := newPath(c.dir)
	defer os.Remove(file)
	// For an object that does not exist, "cat" prints nothing and "copyto"
	// copies nothing. Neither reports an error.
	if _, err := c.run(nil, "copyto", "e2e:"+bucket+"/"+key, file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// getRange converts a range to an offset and a count. rclone knows the size
// and never requests a range past the end.
func (c *rclone) getRange(bucket, key, spec string) ([]byte, error) {
	from, to, _ := strings.Cut(spec, "-")
	args := []string{"cat", "e2e:" + bucket + "/" + key}
	if from == "" {
		args = append(args, "--tail", to)
	} else {
		args = append(args, "--offset", from)
		if to != "" {
			first, _ := strconv.Atoi(from)
			last, _ := strconv.Atoi(to)
			args = append(args, "--count", strconv.Itoa(last-first+1))
		}
	}
	out, err := c.run(nil, args...)
	return []byte(out), err
}

type rcloneItem struct {
	Path  string
	Size  int64
	IsDir bool
}

func (c *rclone) lsjson(args ...string) ([]rcloneItem, error) {
	out, err := c.run(nil, append([]string{"lsjson"}, args...)...)
	if err != nil {
		return nil, err
	}
	var items []rcloneItem
	return items, json.Unmarshal([]byte(out), &items)
}

func (c *rclone) list(bucket, prefix string) (map[string]int64, error) {
	sizes, _, err := c.page(bucket, prefix, "", 1000)
	return sizes, err
}

// page lists with both versions of the operation, and checks that they
// agree. rclone treats a prefix as a directory.
func (c *rclone) page(bucket, prefix, delimiter string, pageSize int) (map[string]int64, []string, error) {
	args := []string{"e2e:" + bucket + "/" + strings.TrimSuffix(prefix, "/"), "--s3-list-chunk", strconv.Itoa(pageSize)}
	if delimiter == "" {
		args = append(args, "--recursive", "--fast-list", "--files-only")
	}

	items, err := c.lsjson(append(args, "--s3-list-version", "2")...)
	if err != nil {
		return nil, nil, err
	}

	items1, err := c.lsjson(append(args, "--s3-list-version", "1")...)
	if err != nil {
		return nil, nil, err
	}

	if fmt.Sprint(items) != fmt.Sprint(items1) {
		return nil, nil, fmt.Errorf("version 1 of the listing gives %v, version 2 %v", items1, items)
	}
	sizes, prefixes := make(map[string]int64), []string(nil)
	for _, item := range items {
		if item.IsDir {
			prefixes = append(prefixes, prefix+item.Path+"/")
		} else {
			sizes[prefix+item.Path] = item.Size
		}
	}
	return sizes, prefixes, nil
}

func (c *rclone) sync(dir, bucket, prefix string) (int, error) {
	return c.transfers("sync", dir, "e2e:"+bucket+"/"+prefix)
}

func (c *rclone) syncBack(bucket, prefix, dir string) (int, error) {
	return c.transfers("sync", "e2e:"+bucket+"/"+prefix, dir)
}

// transfers runs a sync and reads the number of copied files from its log.
func (c *rclone) transfers(args ...string) (int, error) {
	log := newPath(c.dir)
	defer os.Remove(log)
	args = append(args, "--use-json-log", "--log-file", log, "--stats", "1h", "--stats-log-level", "NOTICE", "-v")
	if _, err := c.run(nil, args...); err != nil {
		return 0, err
	}

	f, err := os.Open(log)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	copied := -1
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var entry struct{ Stats *struct{ Transfers int } }
		if err := json.Unmarshal(lines.Bytes(), &entry); err == nil && entry.Stats != nil {
			copied = entry.Stats.Transfers
		}
	}

	if copied < 0 {
		return 0, fmt.Errorf("no statistics in the log of rclone:\n%s", tail(log, 20))
	}
	return copied, nil
}

// compare runs rclone check, which fails if the two sides differ.
func (c *rclone) compare(dir, bucket, prefix, how string) error {
	_, err := c.run(nil, "check", how, dir, "e2e:"+bucket+"/"+prefix)
	return err
}

// putLarge sets the threshold for multipart uploads to 5 MiB. The default is
// 200 MiB.
func (c *rclone) putLarge(bucket, key, file string) error {
	_, err := c.run(nil, "copyto", "--s3-upload-cutoff", "5Mi", file, "e2e:"+bucket+"/"+key)
	return err
}

func (c *rclone) getLarge(bucket, key, file string) error {
	_, err := c.run(nil, "copyto", "e2e:"+bucket+"/"+key, file)
	return err
}

func (c *rclone) copy(bucket, from, to string) error {
	_, err := c.run(nil, "copyto", "e2e:"+bucket+"/"+from, "e2e:"+bucket+"/"+to)
	return err
}

func (c *rclone) move(bucket, from, to string) error {
	_, err := c.run(nil, "moveto", "e2e:"+bucket+"/"+from, "e2e:"+bucket+"/"+to)
	return err
}

func (c *rclone) remove(bucket, key string) error {
	_, err := c.run(nil, "deletefile", "e2e:"+bucket+"/"+key)
	return err
}

func (c *rclone) removeMany(bucket string, keys []string) error {
	list, err := tempFile(c.dir, []byte(strings.Join(keys, "\n")))
	if err != nil {
		return err
	}
	defer os.Remove(list)
	_, err = c.run(nil, "delete", "e2e:"+bucket, "--files-from-raw", list)
	return err
}

func (c *rclone) removeBucket(bucket string) error {
	_, err := c.run(nil, "rmdir", "e2e:"+bucket)
	return err
}

// presign supports GET only.
func (c *rclone) presign(method, bucket, key string, valid time.Duration) (string, error) {
	if method != http.MethodGet {
		return "", errNoPresign
	}
	out, err := c.run(nil, "link", "--expire", valid.String(), "e2e:"+bucket+"/"+key)
	return strings.TrimSpace(out), err
}
