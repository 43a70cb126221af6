package dekcache_test

import (
	"context"
	"fmt"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

// The KMS is asked once; after a purge it is asked again.
func ExampleCache_Get() {
	cache := dekcache.New(dekcache.Config{TTL: time.Minute, MaxEntries: 100, Now: time.Now})
	defer cache.Close()

	askKMS := func(context.Context) ([]byte, error) {
		fmt.Println("the KMS unwraps the key")
		return make([]byte, 32), nil
	}
	group := dekcache.Group{KeyID: "arn:aws:kms:eu-central-1:111122223333:key/1"}
	get := func() {
		entry, err := cache.Get(context.Background(), dekcache.ID{1}, group, askKMS)
		fmt.Println(len(entry.DEK), "bytes, from the cache:", entry.Hit, err)
	}

	get()
	get()
	cache.PurgeAll()
	get()
	// Output:
	// the KMS unwraps the key
	// 32 bytes, from the cache: false <nil>
	// 32 bytes, from the cache: true <nil>
	// the KMS unwraps the key
	// 32 bytes, from the cache: false <nil>
}
