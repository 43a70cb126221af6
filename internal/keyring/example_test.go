package keyring_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func Example() {
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	path := filepath.Join(dir, "kek")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		log.Fatal(err)
	}

	kek, err := kms.NewLocal(path)
	if err != nil {
		log.Fatal(err)
	}

	cache := dekcache.New(dekcache.Config{})
	defer cache.Close()

	keys, err := keyring.New(keyring.Config{
		Keys:  []keyring.Key{{Name: "main", Provider: "local", Wrapper: kek}},
		Rules: []keyring.Rule{{Buckets: []string{"photos"}, Key: "main"}},
		Cache: cache,
	})
	if err != nil {
		log.Fatal(err)
	}

	// Each new object gets its own data key. KeyID and Wrapped are stored
	// with the object.
	ctx := context.Background()
	obj := keyring.Object{Bucket: "photos", Key: "cat.jpg"}
	created, err := keys.Create(ctx, obj, "alice", keyring.Choice{})
	if err != nil {
		log.Fatal(err)
	}
	defer created.Release()

	// Later, they return the same data key.
	opened, err := keys.Open(ctx, obj, created.KeyID, created.Wrapped)
	if err != nil {
		log.Fatal(err)
	}
	defer opened.Release()

	fmt.Println("same data key:", bytes.Equal(created.DEK(), opened.DEK()))

	// A stream checks its lease regularly. It ends after the key was
	// removed.
	if err := os.Remove(path); err != nil {
		log.Fatal(err)
	}

	keys.PurgeAll()
	err = opened.Check(ctx)
	fmt.Println("key removed, revoked:", kms.IsRevoked(err))
	// Output:
	// same data key: true
	// key removed, revoked: true
}
