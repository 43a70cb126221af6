package keytemplate_test

import (
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
)

// The first segment of an object key names the tenant.
func ExampleTemplate_Expand() {
	t, err := keytemplate.Parse("alias/tenant-${prefix.1}")
	if err != nil {
		panic(err)
	}
	for _, key := range []string{"acme/cat.jpg", "../cat.jpg", "cat.jpg"} {
		id, _, err := t.Expand("data", key)
		fmt.Println(id, err)
	}
	// Output:
	// alias/tenant-acme <nil>
	//  the value of ${prefix.1} must be 1 to 64 letters, digits, '-' and '_'
	//  the object key has no ${prefix.1}: it has too few segments that end with /
}
