package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mc is MinIO's command-line client. Its alias is in the environment.
type mc struct {
	endpoint endpoint
	dir      string
	env      []string
}

func newMC(e endpoint, dir string) *mc {
	config := filepath.Join(dir, "mc")
	scheme, host, _ := strings.Cut(e.url, "://")
	alias := url.URL{Scheme: scheme, Host: host, User: url.UserPassword(e.accessKey, e.secret)}
	c := &mc{endpoint: e, dir: dir, env: environment("MC_CONFIG_DIR="+config, "MC_HOST_e2e="+alias.String())}
	if e.ca != "" {
		trusted := filepath.Join(config, "certs", "CAs")
		data, err := os.ReadFile(e.ca)
		if err = errors.Join(err, os.MkdirAll(trusted, 0o700), os.WriteFile(filepath.Join(trusted, "e2e.pem"), data, 0o600)); err != nil {
			panic(err)
		}
	}
	return c
}

// mcLine is a line that mc prints with --json.
type mcLine struct {
	Key, Source, Share string
	Size               int64
	Tagset             map[string]string
	Error              *struct {
		Message string
		Cause   struct {
			Message string
			Error   struct{ Code string }
		}
	}
}

func (c *mc) run(args ...string) ([]mcLine, error) {
	out, err := c.plain(append([]string{"--json"}, args...)...)
	var lines []mcLine
	for decoder := json.NewDecoder(strings.NewReader(out)); ; {
		var line mcLine
		if decoder.Decode(&line) != nil {
			break
		}
		if e := line.Error; e != nil {
			text := fmt.Sprintf("mc %s: %s: %s", strings.Join(args, " "), e.Message, e.Cause.Message)
			if code := e.Cause.Error.Code; code != "" {
				return nil, &apiError{code: code, text: text}
			}
			return nil, errors.New(text)
		}
		lines = append(lines, line)
	}
	return lines, err
}

func (c *mc) plain(args ...string) (string, error) {
	return runTool(c.env, nil, mcCommand(), append([]string{"--disable-pager"}, args...)...)
}

// mcCommand is the path of the mc that run.sh built.
func mcCommand() string { return filepath.Join(os.Getenv("E2E_BIN"), "mc") }

func (c *mc) path(bucket, key string) string { return "e2e/" + bucket + "/" + key }

func (c *mc) as(other credentials) client {
	e := c.endpoint
	e.credentials = other
	return newMC(e, c.dir)
}

func (c *mc) createBucket(bucket string) error {
	_, err := c.run("mb", "--region", region, "e2e/"+bucket)
	return err
}

func (c *mc) putAll(dir, bucket, prefix string) error {
	_, err := c.run("cp", "--recursive", dir+"/", c.path(bucket, prefix))
	return err
}

func (c *mc) getAll(bucket, prefix, dir string) error {
	_, err := c.run("cp", "--recursive", c.path(bucket, prefix), dir+"/")
	return err
}

func (c *mc) put(bucket, key string, data []byte) error {
	file, err := tempFile(c.dir, data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	return c.putLarge(bucket, key, file)
}

func (c *mc) putLarge(bucket, key, file string) error {
	_, err := c.run("cp", file, c.path(bucket, key))
	return err
}

func (c *mc) get(bucket, key string) ([]byte, error) {
	out, err := c.plain("cat", c.path(bucket, key))
	if err != nil { // get the error in a form that can be parsed
		_, err = c.run("stat", c.path(bucket, key))
		if err == nil {
			err = errors.New("mc cat fails, mc stat does not")
		}
	}
	return []byte(out), err
}

func (c *mc) list(bucket, prefix string) (map[string]int64, error) {
	lines, err := c.run("ls", "--recursive", c.path(bucket, prefix))
	sizes := make(map[string]int64)
	for _, line := range lines {
		sizes[prefix+line.Key] = line.Size
	}
	return sizes, err
}

func (c *mc) remove(bucket, key string) error {
	_, err := c.run("rm", c.path(bucket, key))
	return err
}

func (c *mc) removeMany(bucket string, keys []string) error {
	args := []string{"rm"}
	for _, key := range keys {
		args = append(args, c.path(bucket, key))
	}
	_, err := c.run(args...)
	return err
}

func (c *mc) removeBucket(bucket string) error {
	_, err := c.run("rb", "e2e/"+bucket)
	return err
}

func (c *mc) copy(bucket, from, to string) error {
	_, err := c.run("cp", c.path(bucket, from), c.path(bucket, to))
	return err
}

func (c *mc) move(bucket, from, to string) error {
	_, err := c.run("mv", c.path(bucket, from), c.path(bucket, to))
	return err
}

func (c *mc) getLarge(bucket, key, file string) error {
	_, err := c.run("cp", c.path(bucket, key), file)
	return err
}

func (c *mc) setTags(bucket, key string, tags map[string]string) error {
	values := make(url.Values)
	for name, value := range tags {
		values.Set(name, value)
	}
	_, err := c.run("tag", "set", c.path(bucket, key), values.Encode())
	return err
}

func (c *mc) tags(bucket, key string) (map[string]string, error) {
	lines, err := c.run("tag", "list", c.path(bucket, key))
	if err != nil || len(lines) == 0 {
		return nil, err
	}
	return lines[0].Tagset, nil
}

func (c *mc) sync(dir, bucket, prefix string) (int, error) {
	return c.mirror(dir, c.path(bucket, prefix))
}

func (c *mc) syncBack(bucket, prefix, dir string) (int, error) {
	return c.mirror(c.path(bucket, prefix), dir)
}

// mirror copies and overwrites files that differ. If it copies nothing, mc
// diff must find no difference.
func (c *mc) mirror(from, to string) (int, error) {
	lines, err := c.run("mirror", "--overwrite", from, to)
	if err != nil {
		return 0, err
	}

	copied := 0
	for _, line := range lines {
		if line.Source != "" {
			copied++
		}
	}

	if copied > 0 {
		return copied, nil
	}
	differences, err := c.run("diff", from, to)
	if err == nil && len(differences) > 0 {
		err = fmt.Errorf("mc diff after mirror: %+v", differences)
	}
	return copied, err
}

func (c *mc) presign(method, bucket, key string, valid time.Duration) (string, error) {
	if method != http.MethodGet {
		return "", errNoPresign
	}
	lines, err := c.run("share", "download", "--expire", valid.String(), c.path(bucket, key))
	if err != nil {
		return "", err
	}
	return lines[0].Share, nil
}
