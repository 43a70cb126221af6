package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// The provider "local" has its key in a file. Keys of cloud providers are
// used in the same way.
func Example() {
	dir, err := os.MkdirTemp("", "kms")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	path := filepath.Join(dir, "kek")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		log.Fatal(err)
	}

	key, err := kms.NewLocal(path)
	if err != nil {
		log.Fatal(err)
	}

	// Generate returns a new data key, and the same key wrapped.
	ctx := context.Background()
	ec := kms.EncryptionContext{"bucket": "photos", "key": "cat.jpg"}
	dek, wrapped, err := kms.Generate(ctx, key, ec)
	if err != nil {
		log.Fatal(err)
	}

	unwrapped, err := kms.Unwrap(ctx, key, wrapped, ec)
	if err != nil {
		log.Fatal(err)
	}

	fmt.Println("same data key:", bytes.Equal(dek, unwrapped))

	// The wrapped key cannot be unwrapped for another object.
	_, err = kms.Unwrap(ctx, key, wrapped, kms.EncryptionContext{"bucket": "photos", "key": "dog.jpg"})
	if failure, ok := errors.AsType[*kms.Error](err); ok {
		fmt.Println("another object:", failure.Kind)
	}

	// Without the key, nothing can be unwrapped.
	if err := os.Remove(path); err != nil {
		log.Fatal(err)
	}

	_, err = kms.Unwrap(ctx, key, wrapped, ec)
	fmt.Println("key removed, revoked:", kms.IsRevoked(err))
	// Output:
	// same data key: true
	// another object: invalid ciphertext
	// key removed, revoked: true
}
