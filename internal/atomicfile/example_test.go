package atomicfile_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
)

// A reader sees the old content or the new one, never a part of either.
func ExampleReplace() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	path := filepath.Join(dir, "state.json")
	for _, text := range []string{"first", "second"} {
		if err := atomicfile.Replace(path, []byte(text), nil); err != nil {
			fmt.Println(err)
			return
		}
	}

	got, err := os.ReadFile(path)
	fmt.Printf("%s %v\n", got, err)
	// Output: second <nil>
}
