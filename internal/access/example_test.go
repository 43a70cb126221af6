package access_test

import (
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

// A grant on a prefix is no right to anything beside it.
func ExampleClient_MayObject() {
	directory, err := access.New([]access.Client{{
		Name: "app", AccessKey: "AKEXAMPLE", Secret: "a secret of twenty characters",
		Allow: []access.Grant{{
			Buckets: []string{"photos"}, Prefixes: []string{"app/"}, Actions: []access.Action{access.Read, access.List},
		}},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}

	client, _ := directory.Now().Client("AKEXAMPLE")
	fmt.Println(client.MayObject(access.Read, "photos", "app/cat.jpg"))
	fmt.Println(client.MayObject(access.Read, "photos", "other/cat.jpg"))
	fmt.Println(client.MayObject(access.Write, "photos", "app/cat.jpg"))
	// Output:
	// true
	// false
	// false
}
