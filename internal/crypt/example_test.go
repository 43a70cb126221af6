package crypt_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Sealing returns a body, which becomes the content of the object in the
// store, and an envelope, which becomes its metadata.
func ExampleSealer() {
	obj := crypt.Object{Bucket: "photos", Key: "cat.jpg"}
	plaintext := "a picture of a cat"
	dek := make([]byte, crypt.DEKSize) // in the proxy, the KMS generates and wraps it
	rand.Read(dek)

	sealer, err := crypt.NewSealer(strings.NewReader(plaintext), int64(len(plaintext)), dek, rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	defer sealer.Close()

	envelope := crypt.Envelope{
		KeyID:      "local:1234",
		WrappedDEK: []byte("the DEK, wrapped"),
		Header:     sealer.Header(),
		Size:       int64(len(plaintext)),
	}
	if err := envelope.Sign(dek, obj); err != nil {
		log.Fatal(err)
	}

	metadata, err := envelope.Metadata()
	if err != nil {
		log.Fatal(err)
	}

	body, err := io.ReadAll(sealer)
	if err != nil {
		log.Fatal(err)
	}

	fmt.Println("body:", len(body), "bytes")
	fmt.Println("cmek-key:", metadata["cmek-key"])
	fmt.Println("cmek-size:", metadata["cmek-size"])
	// Output:
	// body: 74 bytes
	// cmek-key: local:1234
	// cmek-size: 18
}

// Opening first verifies the envelope. Then it verifies each segment before
// it returns its plaintext.
func ExampleOpener() {
	obj := crypt.Object{Bucket: "photos", Key: "cat.jpg"}
	body, metadata, dek := sealExample(obj, "a picture of a cat")

	envelope, err := crypt.ParseEnvelope(metadata)
	if err != nil {
		log.Fatal(err)
	}
	if err := envelope.Verify(dek, obj); err != nil {
		log.Fatal(err)
	}

	opener, err := crypt.NewOpener(bytes.NewReader(body), crypt.Whole(envelope.Size), dek, envelope.Header)
	if err != nil {
		log.Fatal(err)
	}
	defer opener.Close()

	for {
		text, err := opener.Next()
		if err == io.EOF { //nolint:errorlint // bare: an error that wraps it is not the end
			break
		}
		if err != nil {
			log.Fatal(err)
		}

		fmt.Printf("%s\n", text)
	}

	// If the store has moved an object, it does not verify.
	err = envelope.Verify(dek, crypt.Object{Bucket: "photos", Key: "dog.jpg"})
	fmt.Println("moved:", errors.Is(err, crypt.ErrAuth))
	// Output:
	// a picture of a cat
	// moved: true
}

// A range needs only the segments that contain its bytes.
func ExampleCover() {
	obj := crypt.Object{Bucket: "books", Key: "long.txt"}
	body, metadata, dek := sealExample(obj, strings.Repeat("All work and no play. ", 10_000))
	envelope, err := crypt.ParseEnvelope(metadata)
	if err != nil {
		log.Fatal(err)
	}

	if err := envelope.Verify(dek, obj); err != nil {
		log.Fatal(err)
	}

	window, err := crypt.Cover(envelope.Size, 110_000, 21) // 21 bytes, starting at byte 110,000
	if err != nil {
		log.Fatal(err)
	}

	stored := body[window.Start:window.End] // this range is fetched from the store
	opener, err := crypt.NewOpener(bytes.NewReader(stored), window, dek, envelope.Header)
	if err != nil {
		log.Fatal(err)
	}
	defer opener.Close()

	text, err := opener.Next()
	if err != nil {
		log.Fatal(err)
	}

	fmt.Printf("%s\n", text)
	fmt.Println("fetched", len(stored), "of", len(body), "stored bytes")
	// Output:
	// All work and no play.
	// fetched 65552 of 220104 stored bytes
}

// sealExample does what ExampleSealer shows.
func sealExample(obj crypt.Object, plaintext string) (body []byte, metadata map[string]string, dek []byte) {
	dek = make([]byte, crypt.DEKSize)
	rand.Read(dek)
	sealer, err := crypt.NewSealer(strings.NewReader(plaintext), int64(len(plaintext)), dek, rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	defer sealer.Close()

	envelope := crypt.Envelope{
		KeyID: "local:1234", WrappedDEK: []byte("the DEK, wrapped"), Header: sealer.Header(),
		Size: int64(len(plaintext)),
	}
	if err := envelope.Sign(dek, obj); err != nil {
		log.Fatal(err)
	}

	if metadata, err = envelope.Metadata(); err != nil {
		log.Fatal(err)
	}
	if body, err = io.ReadAll(sealer); err != nil {
		log.Fatal(err)
	}

	return body, metadata, dek
}
