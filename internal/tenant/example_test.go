package tenant_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
)

// A file is added, and another one has an error.
func Example() {
	path, err := os.MkdirTemp("", "tenants")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(path)
	cfg := &config.Config{
		TenantsDir: path,
		Encryption: config.Encryption{Rules: []config.Rule{{Buckets: []string{"data"}, Tenants: true}}},
	}
	dir := tenant.Open(path, func(path string, data []byte) (*config.Tenant, error) {
		return config.ParseTenant(path, data, cfg)
	})

	for name, text := range map[string]string{
		"acme.yaml": "key: {provider: aws-kms, key_id: alias/acme}\nobjects: [{buckets: [data], prefixes: [acme/]}]\n",
		"beta.yaml": "key: {provider: aws-kms, key_id: alias/beta}\nobjects: [{buckets: [data], prefixes: [beta]}]\n",
	} {
		if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o600); err != nil {
			panic(err)
		}
	}
	state := dir.Next()
	dir.Accept(state)
	fmt.Println(state.Names())
	for _, p := range state.Problems {
		fmt.Println(strings.TrimPrefix(p.Err.Error(), path+"/"))
	}
	// Output:
	// [acme]
	// beta.yaml:2:40: a prefix of a tenant must end with /, or it would cover others: acme is also in acme-2/
}
