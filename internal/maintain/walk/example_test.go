package walk_test

import (
	"context"
	"fmt"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
)

// The first value takes longest, and still comes first.
func ExampleInOrder() {
	words := func(yield func(string, error) bool) {
		for _, word := range []string{"slow", "fast", "faster"} {
			if !yield(word, nil) {
				return
			}
		}
	}
	work := func(_ context.Context, word string) int {
		if word == "slow" {
			time.Sleep(10 * time.Millisecond)
		}
		return len(word)
	}
	for length, err := range walk.InOrder(context.Background(), words, 3, 10, work) {
		fmt.Println(length, err)
	}
	// Output:
	// 4 <nil>
	// 4 <nil>
	// 6 <nil>
}
