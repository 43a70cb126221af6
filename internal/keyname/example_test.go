package keyname_test

import (
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

// A store that keeps objects as files would take this key for another object,
// outside of the prefix.
func ExampleStore_Check() {
	const hostile = "uploads/../secret"
	fmt.Println("path:", keyname.Path.Check(hostile, keyname.Read) != nil)
	fmt.Println("literal:", keyname.Literal.Check(hostile, keyname.Read) != nil)
	// Output:
	// path: true
	// literal: false
}
