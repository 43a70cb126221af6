package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// question is what `cmekproxy init` asks, or takes from a flag.
type question struct {
	flag, text, example string
	fallback            string // the answer if there is none; "" if one is needed
	quiet               bool   // it is never asked
	skip                func(*setup) bool
	// take takes an answer, or returns why it is wrong and what is right.
	take func(s *setup, value string) error
	// typed takes a secret that was typed at the terminal, instead of take.
	typed func(s *setup, value string) error
	// prompt asks for it, instead of text.
	prompt string
}

func (q *question) usage() string {
	usage := q.text
	switch {
	case q.fallback == generated:
		usage += " (default: a random one)"
	case q.fallback != "":
		usage += " (default " + q.fallback + ")"
	case q.example != "":
		usage += ", such as " + q.example
	}
	return usage
}

// Where the credentials for the store come from.
const (
	credentialsDefault = "default"
	credentialsEnv     = "env"
	credentialsFile    = "file"
)

// Files for secrets, in the directory of the configuration.
const (
	originSecretFile = "store.secret"
	clientSecretFile = "client.secret"
)

// generated is the answer for which init makes a random access key.
const generated = "random"

var firstQuestions = []question{
	{
		flag: "store-endpoint", text: "URL of the store", example: "https://s3.eu-central-1.amazonaws.com",
		take: func(s *setup, value string) error { return s.try(&s.Endpoint, strings.TrimSuffix(value, "/")) },
	},
	{
		flag: "store-region", text: "Region of the store", fallback: "us-east-1",
		take: func(s *setup, value string) error {
			if u, err := url.Parse(s.Endpoint); err == nil && value == "us-east-1" {
				if m := regionOfAWS.FindStringSubmatch(u.Hostname()); m != nil && m[1] != value {
					return fmt.Errorf("the endpoint is in the region %s", m[1])
				}
			}
			return s.try(&s.Region, value)
		},
	},
	{
		flag:     "store-credentials",
		text:     "Credentials for the store: default (AWS SDK), env (ORIGIN_ACCESS_KEY, ORIGIN_SECRET_KEY), or file",
		fallback: credentialsDefault, take: (*setup).takeCredentials,
	},
	{
		flag: "store-access-key", text: "Access key for the store", skip: withoutFile,
		take: func(s *setup, value string) error { return s.try(&s.OriginAccessKey, literal(value)) },
	},
	{
		flag: "store-secret-file", text: "File with the secret key for the store", skip: withoutFile,
		take:  func(s *setup, value string) error { return s.takeSecretFile(&s.OriginSecret, value) },
		typed: (*setup).typedOriginSecret, prompt: "Secret key for the store, which is not shown",
	},
	{
		flag: "provider", text: "KMS: " + providerNames(), fallback: string(config.AWSKMS),
		take: func(s *setup, value string) error {
			kind, err := findKind(value)
			if err == nil {
				s.Provider, s.Key = kind.provider, exampleOf(kind).Key
			}
			return err
		},
	},
}

var lastQuestions = []question{
	{
		flag: "bucket", text: "Buckets, with commas between them", example: "my-bucket",
		take: (*setup).takeBuckets,
	},
	{
		flag: "client-access-key", text: "Access key of the client", fallback: generated,
		take: func(s *setup, value string) error {
			if value == generated {
				value = rand.Text()[:20]
			}
			return s.try(&s.ClientAccessKey, literal(value))
		},
	},
	{
		flag: "client-secret-file", fallback: clientSecretFile, quiet: true,
		text: "File with the client's secret key; created beside the configuration",
		take: func(s *setup, value string) error {
			if value == clientSecretFile {
				s.ClientSecret = "file:" + literal(filepath.Join(filepath.Dir(s.path), value))
				return s.check()
			}
			return s.takeSecretFile(&s.ClientSecret, value)
		},
	},
	{
		flag: "listen", text: "HOST:PORT of the S3 endpoint", fallback: "127.0.0.1:9000", quiet: true,
		take: func(s *setup, value string) error { return s.try(&s.Listen, value) },
	},
	{
		flag: "admin-listen", text: "HOST:PORT of health, metrics and /admin", fallback: "127.0.0.1:9001", quiet: true,
		take: func(s *setup, value string) error { return s.try(&s.AdminListen, value) },
	},
}

// keyQuestions returns the questions about a key of a provider.
func keyQuestions(kind *kmsKind) (list []question) {
	for _, k := range kind.settings {
		list = append(list, question{
			flag: k.flag, text: k.question, example: k.example,
			take: func(s *setup, value string) error { return s.takeKey(k.name, value) },
		})
	}
	return list
}

// allQuestions returns each question that there may be. Providers have flags
// in common.
func allQuestions() []question {
	list := append([]question{}, firstQuestions...)
	const key = "The key: its id, name or label at the KMS, or the file of a local one"
	list = append(list, question{flag: "key", text: key})
	for i := range kmsKinds {
		list = append(list, keyQuestions(&kmsKinds[i])...)
	}
	return append(list, lastQuestions...)
}

var regionOfAWS = regexp.MustCompile(`^s3[.-]([a-z0-9-]+)\.amazonaws\.com$`)

func withoutFile(s *setup) bool { return s.credentials != credentialsFile }

// try sets a value, and takes it back if the configuration refuses it.
func (s *setup) try(field *string, value string) error {
	before := *field
	*field = value
	err := s.check()
	if err != nil {
		*field = before
	}
	return err
}

func (s *setup) takeCredentials(value string) error {
	if key := s.given["store-access-key"]; key != nil && *key != "" {
		value = credentialsFile
	}
	switch value {
	case credentialsDefault:
		s.OriginAccessKey, s.OriginSecret = "", ""
	case credentialsEnv, credentialsFile:
		s.OriginAccessKey, s.OriginSecret = "${ORIGIN_ACCESS_KEY}", "${ORIGIN_SECRET_KEY}"
	default:
		return errors.New("answer default, env or file")
	}
	s.credentials = value
	return nil
}

// takeSecretFile takes a file with a secret, which must exist.
func (s *setup) takeSecretFile(field *string, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w: write the secret key into this file first, with mode 0600", err)
	}
	return s.try(field, "file:"+literal(path))
}

// typedOriginSecret takes a secret from the terminal, for a file that init
// creates.
func (s *setup) typedOriginSecret(value string) error {
	path := filepath.Join(filepath.Dir(s.path), originSecretFile)
	if exists(path) {
		return fmt.Errorf("%s exists: remove it, or begin again with --store-secret-file %s", path, path)
	}
	if strings.ContainsAny(value, " \t\r\n") {
		return errors.New("a secret key has no white space")
	}
	s.secrets[path] = value
	s.OriginSecret = "file:" + literal(path)
	return nil
}

// takeKey takes a setting of the key.
func (s *setup) takeKey(name, value string) error {
	switch name {
	case "key_file", "module", "token_file":
		absolute, err := filepath.Abs(value)
		if err != nil {
			return err
		}
		value = absolute
	}
	if name == "key_file" && exists(value) {
		if _, err := kms.NewLocal(value); err != nil {
			return fmt.Errorf("%w: name a file that does not exist yet, or one of cmekproxy keys new", err)
		}
	}

	before := s.Key[name]
	s.Key[name] = literal(value)
	err := s.check()
	if err != nil {
		s.Key[name] = before
	}
	return err
}

// bucketForm matches the names of buckets, and patterns with a star.
var bucketForm = regexp.MustCompile(`^[a-z0-9*][a-z0-9.*-]*[a-z0-9*]$|^\*$`)

func (s *setup) takeBuckets(value string) error {
	var buckets []string
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimPrefix(strings.TrimSpace(name), "s3://")
		if !bucketForm.MatchString(name) || len(name) > 63 || len(name) < 3 && !strings.Contains(name, "*") {
			return fmt.Errorf("%q is no name of a bucket: 3 to 63 lowercase letters, digits, '.' and '-'; "+
				"* is for any characters", name)
		}
		buckets = append(buckets, name)
	}
	s.Buckets = buckets
	return s.check()
}
