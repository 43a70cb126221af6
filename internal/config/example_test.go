package config_test

import (
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// All problems of a file are reported at once, each where it is.
func ExampleParse() {
	const text = `listen: 127.0.0.1:9000
origin: {endpoint: "https://store.example", region: us-east-1}
clients:
  - {name: app, access_key: AKEXAMPLE, secret_key: "${APP_SECRET}", allow: [{buckets: ["*"], actions: [read]}]}
keys: [{name: main, provider: local, key_file: kms.key}]
encryption: {rules: [{buckets: ["*"], key: mian}]}
`
	environment := func(string) (string, bool) { return "a secret of the environment", true }
	_, err := config.Parse("config.yaml", []byte(text), environment)
	fmt.Println(err)
	// Output: config.yaml:6:44: there is no key with this name (did you mean "main"?)
}
