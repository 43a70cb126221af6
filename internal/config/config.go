// Package config parses the YAML configuration file of the proxy into a
// Config.
//
// Parsing is strict. Unknown settings are errors, and so are values that
// cannot work. All problems are reported together, each with its line and
// column and, if a name is misspelled, a suggestion. config.example.yaml at
// the root of the repository documents all settings.
//
// In any value, ${NAME} is replaced by the environment variable NAME; write
// $${ for a literal ${. A secret written as file:/PATH is read from that
// file. Errors never contain secrets or values of environment variables.
//
//	config.go      reading and parsing a file
//	settings.go    Config: the settings, with their defaults
//	document.go    YAML syntax
//	decode.go      from YAML nodes to a Config
//	scalar.go      single values, environment variables
//	readsecret.go  secrets
//	secret.go      Secret: a string that does not print itself
//	check.go       checks of the values
//	template.go    keys that are templates
//	tenant.go      files of tenants
//	changes.go     what differs between two configurations
//	address.go     checks of addresses and URLs
//	health.go      the address of health checks, without the rest
//	tracing.go     checks of the receiver of spans
//	errors.go      Error, and suggestions for misspelled names
//	words.go       struct tags, and words for errors
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxFileSize limits the size of a config file in bytes. Realistic files
// have less than a hundredth of this.
const maxFileSize = 1 << 20

// Where the config file is by default.
const (
	PathVariable = "CMEKPROXY_CONFIG" // environment variable with the path of the file
	DefaultPath  = "/etc/cmekproxy/config.yaml"
)

// Locate returns the path of the config file: given, or the path in the
// environment, or DefaultPath. named is false for DefaultPath.
func Locate(given string, lookupEnv func(string) (string, bool)) (path string, named bool) {
	if given != "" {
		return given, true
	}
	if path, _ := lookupEnv(PathVariable); path != "" {
		return path, true
	}
	return DefaultPath, false
}

// Stdin is the path for standard input.
const Stdin = "-"

// Read returns the content of the file at path, for Parse.
func Read(path string) ([]byte, error) {
	f := os.Stdin
	if path != Stdin {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, fmt.Errorf("opening the config: %w", err)
		}
	}

	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1)) //nolint:forbidigo // limited
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading the config: %w", err)
	}

	return text, nil
}

// Parse parses the content of a config file. name is the file's name in
// errors. lookupEnv is normally os.LookupEnv. Parse also reads the files
// that secrets refer to. Problems with the content are returned as *Error.
func Parse(name string, data []byte, lookupEnv func(string) (string, bool)) (*Config, error) {
	return newDecoder(name, lookupEnv).parse(data)
}

// ParseOffline is Parse for commands that work on a bucket without a
// server. It skips the settings that only the server needs; these keep
// their defaults. Their files and environment variables need not exist,
// because they may be lost when someone has to decrypt without the server.
func ParseOffline(name string, data []byte, lookupEnv func(string) (string, bool)) (*Config, error) {
	d := newDecoder(name, lookupEnv)
	d.offline = true
	return d.parse(data)
}

// Validate checks the content of a config file that is for another machine,
// as in CI. Environment variables and files with secrets need not exist here.
// absent names those that do not, as ${NAME} or by path: their values are not
// checked. Everything else is checked as Parse does.
func Validate(name string, data []byte, lookupEnv func(string) (string, bool)) (absent []string, err error) {
	d := newDecoder(name, lookupEnv)
	d.elsewhere = true
	_, err = d.parse(data)
	return d.absent, err
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
		c.Origin.CAFile, _ = d.lookupEnv("AWS_CA_BUNDLE") // as the SDK does for the KMS
	}

	return c, nil
}

// The defaults of DEKReuse.
const (
	defaultReuseObjects = 100_000
	defaultReuseBytes   = 1 << 40
)

// inherit sets values that default to another setting.
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
