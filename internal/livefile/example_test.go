package livefile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// A file that is replaced is read again; one that cannot be parsed leaves the
// last good content in force.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "token")
	write := func(text string) { _ = os.WriteFile(path, []byte(text), 0o600) }

	write("one\n")
	token, err := livefile.Open(livefile.Config[string]{
		Paths: []string{path},
		Load: func() (string, error) {
			text, err := os.ReadFile(path)
			if err == nil && len(text) == 0 {
				err = fmt.Errorf("%s is empty", filepath.Base(path))
			}
			return strings.TrimSpace(string(text)), err
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(token.Get())

	write("second\n")
	fmt.Println(token.Check(), token.Get())
	write("")
	fmt.Println(token.Check(), token.Get())
	// Output:
	// one
	// <nil> second
	// token is empty second
}
