// Package config reads the YAML file that configures the proxy into a typed
// Config.
//
// It is strict: what it does not know is an error, and so is a value that
// could not work. All problems are reported at once, each with its line and
// column and, where one is near, the name that was probably meant.
// config.example.yaml at the root of the repository is the reference of all
// settings.
//
// In any value, ${NAME} is replaced by the environment variable NAME; $${
// gives a literal ${. The text file:/PATH in place of a secret reads it from
// that file. No secret, and nothing that came from the environment, is ever
// part of an error.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxFileSize bounds a config file, in bytes. The largest sensible one is a
// hundredth of this.
const maxFileSize = 1 << 20

// Where the file is if nobody says otherwise.
const (
	PathVariable = "CMEKPROXY_CONFIG" // the environment variable with its path
	DefaultPath  = "/etc/cmekproxy/config.yaml"
)

// Locate returns the path of the config file: the given one, else that of the
// environment, else DefaultPath. It reports whether the path was named.
func Locate(given string, lookupEnv func(string) (string, bool)) (path string, named bool) {
	if given != "" {
		return given, true
	}
	if path, _ := lookupEnv(PathVariable); path != "" {
		return path, true
	}
	return DefaultPath, false
}

// Stdin is the path that stands for standard input.
const Stdin = "-"

// Read returns the text of the file at path, for Parse.
func Read(path string) ([]byte, error) {
	f := os.Stdin
	if path != Stdin {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, fmt.Errorf("opening the config: %w", err)
		}
	}

	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1)) //nolint:forbidigo // one byte more than may be
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading the config: %w", err)
	}

	return text, nil
}

// Parse reads the text of a config file; name stands for the file in errors.
// lookupEnv is os.LookupEnv or a stand-in for it. Parse reads the files that
// secrets name. What is wrong with the content is reported as *Error.
func Parse(name string, data []byte, lookupEnv func(string) (string, bool)) (*Config, error) {
	return newDecoder(name, lookupEnv).parse(data)
}

// ParseOffline is Parse for commands that work on a bucket without a server: it
// skips the settings that are for the server alone. They keep their defaults,
// and no file or environment variable of theirs has to exist: on the day on
// which somebody has to decrypt without the server, its files may be gone.
func ParseOffline(name string, data []byte, lookupEnv func(string) (string, bool)) (*Config, error) {
	d := newDecoder(name, lookupEnv)
	d.offline = true
	return d.parse(data)
}

func (d *decoder) parse(data []byte) (*Config, error) {
	c := defaults()
	if root := d.document(data); root != nil && d.structure(root, c) {
		d.check(c)
	}
	if err := d.err(); err != nil {
		return nil, err
	}

	inherit(c)
	if c.Origin.CAFile == "" {
		c.Origin.CAFile, _ = d.lookupEnv("AWS_CA_BUNDLE") // as for the SDK that speaks to the KMS
	}

	return c, nil
}

// The defaults of DEKReuse.
const (
	defaultReuseObjects = 100_000
	defaultReuseBytes   = 1 << 40
)

// inherit fills in what one setting takes from another.
func inherit(c *Config) {
	for i := range c.Encryption.Rules {
		r := &c.Encryption.Rules[i]
		r.PlaintextObjects = cmp.Or(r.PlaintextObjects, c.Encryption.PlaintextObjects)
		r.CustomerKeys = cmp.Or(r.CustomerKeys, c.Encryption.CustomerKeys)
		if reuse := &r.DEKReuse; *reuse != (DEKReuse{}) {
			reuse.MaxObjects = cmp.Or(reuse.MaxObjects, defaultReuseObjects)
			reuse.MaxBytes = cmp.Or(reuse.MaxBytes, defaultReuseBytes)
		}
	}
}
