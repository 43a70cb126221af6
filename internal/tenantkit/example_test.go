package tenantkit_test

import (
	"fmt"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/tenantkit"
)

// A kit has a file for the customer's administrator, and an entry for the
// vendor's configuration.
func ExampleInit() {
	kit, err := tenantkit.Init(tenantkit.Order{Provider: tenantkit.Vault, Values: map[string]string{
		"name": "acme", "bucket": "data", "address": "https://vault.acme.example",
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(strings.Contains(kit.Artifact, `path "transit/decrypt/acme"`))
	fmt.Println(kit.Entry)

	_, err = tenantkit.Init(tenantkit.Order{Provider: tenantkit.Vault, Values: map[string]string{
		"name": "acme; rm -rf /", "bucket": "data", "address": "https://vault.acme.example",
	}})
	fmt.Println(err)
	// Output:
	// true
	// keys:
	//   - name: "acme"
	//     provider: vault-transit
	//     address: "https://vault.acme.example"
	//     mount: "transit"
	//     key_id: "acme"
	//     login:
	//       approle:
	//         role_id: ROLE-ID # what the customer has sent
	//         secret_id_file: "/etc/cmekproxy/acme.secret-id"
	// encryption:
	//   rules:
	//     - buckets: ["data"]
	//       prefixes: ["acme/"]
	//       key: "acme"
	//
	// --name is "acme; rm -rf /", and must be 1 to 48 lower-case letters, digits and '-', not at the ends
}
