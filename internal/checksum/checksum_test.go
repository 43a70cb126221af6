package checksum_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

func TestAlgorithms(t *testing.T) {
	known := map[string]string{ // of "abc", from the algorithms' test vectors
		"CRC32": "352441c2", "CRC32C": "364b3fb7", "MD5": "900150983cd24fb0d6963f7d28e17f72",
		"SHA1":     "a9993e364706816aba3e25717850c26c9cd0d89d",
		"SHA256":   "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"SHA512":   "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
		"XXHASH64": "44bc2cf5ad770999", "XXHASH3": "78af5f94892f3950", "XXHASH128": "06b05ab6733a618578af5f94892f3950",
	}

	for i, a := range checksum.All {
		text, want := "abc", known[a.Name]
		if a.ID == crypt.CRC64NVME {
			text, want = "123456789", "ae8b14860a799888" // from the NVM Express specification
		}

		h := a.New()
		h.Write([]byte(text))
		digest := h.Sum(nil)
		if got := hex.EncodeToString(digest); got != want {
			t.Errorf("%s: %s", a.Name, got)
		}

		if int(a.ID) != i+1 || len(digest) != a.ID.Size() || h.Size() != a.ID.Size() {
			t.Errorf("%s has id %d and %d bytes", a.Name, a.ID, len(digest))
		}
	}

	if len(checksum.All) != 10 {
		t.Errorf("%d algorithms", len(checksum.All))
	}
}

func TestNames(t *testing.T) {
	for _, a := range checksum.All {
		header := "x-amz-checksum-" + strings.ToLower(a.Name)
		if !strings.EqualFold(a.Header(), header) || checksum.OfHeader(header) != a ||
			checksum.OfHeader(a.Header()) != a || checksum.Named(strings.ToLower(a.Name)) != a {
			t.Errorf("%s is not found as %s", a.Name, a.Header())
		}
	}

	for _, name := range []string{
		"", "x-amz-checksum-", "x-amz-checksum-type", "x-amz-checksum-crc", "CRC32",
		"content-md5",
	} {
		if a := checksum.OfHeader(name); a != nil {
			t.Errorf("%q is the header of %s", name, a.Name)
		}
	}
}

func TestText(t *testing.T) {
	a := checksum.Named("CRC32")
	if digest, ok := a.Decode(checksum.Encode([]byte{1, 2, 3, 4})); !ok || !bytes.Equal(digest, []byte{1, 2, 3, 4}) {
		t.Errorf("%x, %v", digest, ok)
	}
	for _, text := range []string{"", "AQIDBA", "AQIDBA=", "AQIDBAU=", "AQID", "AQIDBA==-1", " AQIDBA=="} {
		if digest, ok := a.Decode(text); ok {
			t.Errorf("%q is %x", text, digest)
		}
	}
}

// A clone is independent of the original.
func TestClone(t *testing.T) {
	text := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	for _, a := range checksum.All {
		whole := a.New()
		whole.Write(text)

		for _, at := range []int{0, 1, 31, 32, 240, 241, 1024, 1088, 4097, len(text)} {
			h := a.New()
			h.Write(text[:at])
			clone, err := h.Clone()
			if err != nil {
				t.Fatal(err)
			}

			h.Write([]byte("something else, " + strings.Repeat("and more of it", 100)))
			clone.Write(text[at:])

			if !bytes.Equal(clone.Sum(nil), whole.Sum(nil)) {
				t.Errorf("%s: a clone made after %d bytes has another digest", a.Name, at)
			}
			if bytes.Equal(h.Sum(nil), whole.Sum(nil)) {
				t.Errorf("%s: a clone made after %d bytes is not another hash", a.Name, at)
			}
		}
	}
}

func TestAppend(t *testing.T) {
	text := bytes.Repeat([]byte("any text "), 5000)
	sum := func(a *checksum.Algorithm, text []byte) []byte {
		h := a.New()
		h.Write(text)
		return h.Sum(nil)
	}

	crcs := 0
	for _, a := range checksum.All {
		if !a.IsCRC() {
			continue
		}

		crcs++
		for _, at := range []int{0, 1, 255, 4096, 44_999, 45_000} {
			if got := a.Append(sum(a, text[:at]), sum(a, text[at:]), int64(len(text)-at)); !bytes.Equal(got,
				sum(a, text)) {
				t.Errorf("%s of %d bytes and the others: %x", a.Name, at, got)
			}
		}
	}

	if crcs != 3 || checksum.All[crypt.SHA256-1].IsCRC() {
		t.Errorf("%d CRCs", crcs)
	}
}
