package glob_test

import (
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/glob"
)

func ExampleMatch() {
	fmt.Println(glob.Match("logs-*", "logs-2026"))
	fmt.Println(glob.Match("logs-*", "backup-logs-2026"))
	// Output:
	// true
	// false
}
