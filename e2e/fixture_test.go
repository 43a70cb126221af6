package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sizes are in bytes. The first segment of a stored body holds 65,496 bytes
// of plaintext besides its header, and the others 65,536. Arithmetic errors
// show first at these edges. All sizes are below every client's threshold
// for multipart uploads.
var sizes = []int{0, 1, 65495, 65496, 65497, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20, 5 << 20}

// smallText is the body of objects whose content does not matter.
const smallText = "Small object of the end-to-end tests. If the store can read this line, the proxy has failed.\n"

// body is a file to store.
type body struct {
	Name   string `json:"name"`
	File   string `json:"file"` // path
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
	data   []byte
}

// fixture is the data that all clients store.
type fixture struct {
	Bodies    []body   `json:"bodies"`
	Large     body     `json:"large"` // above every client's threshold for multipart uploads
	Keys      []string `json:"keys"`  // unusual keys that the store accepts
	SmallText string   `json:"small_text"`
	// PutIfMatch: the store accepts a PUT whose If-Match is met.
	PutIfMatch bool   `json:"put_if_match"`
	Dir        string `json:"-"`
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{SmallText: smallText, Dir: t.TempDir()}
	random := rand.NewChaCha8([32]byte{'e', '2', 'e'})
	for _, size := range sizes {
		data := make([]byte, size)
		_, _ = random.Read(data)
		f.add(t, fmt.Sprintf("random-%d", size), data)
	}
	for _, size := range []int{65497, 1 << 20} {
		f.add(t, fmt.Sprintf("text-%d", size), prose(random, size))
		f.add(t, fmt.Sprintf("zeros-%d", size), make([]byte, size))
	}
	f.Large = newBody(t, t.TempDir(), "large", prose(random, 17<<20+1))
	return f
}

func (f *fixture) add(t *testing.T, name string, data []byte) {
	t.Helper()
	f.Bodies = append(f.Bodies, newBody(t, f.Dir, name, data))
}

func newBody(t *testing.T, dir, name string, data []byte) body {
	t.Helper()
	sum := sha256.Sum256(data)
	b := body{Name: name, File: filepath.Join(dir, name), Size: len(data), SHA256: hex.EncodeToString(sum[:]), data: data}
	if err := os.WriteFile(b.File, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fixture) body(t *testing.T, name string) body {
	t.Helper()
	for _, b := range f.Bodies {
		if b.Name == name {
			return b
		}
	}
	t.Fatalf("no body %s", name)
	return body{}
}

// plaintexts returns everything that clients store, for the search at the
// end.
func (f *fixture) plaintexts() [][]byte {
	all := [][]byte{[]byte(smallText)}
	for _, b := range f.Bodies {
		all = append(all, b.data)
	}
	all = append(all, f.Large.data)
	return all
}

// manifest is the input of a script, as JSON in a file. Credentials are
// passed in the environment.
type manifest struct {
	*fixture
	Endpoint string `json:"endpoint"`
	Region   string `json:"region"`
	Bucket   string `json:"bucket"`
	Proxied  bool   `json:"proxied"` // false: the endpoint is the store itself
}

func (m *manifest) write(t *testing.T) string {
	t.Helper()
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "manifest.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// prose returns text in which no two lines are equal.
func prose(random *rand.ChaCha8, size int) []byte {
	words := strings.Fields("the key of a lock is kept by its owner and not by who keeps the house since what is " +
		"locked away must open for the one and stay shut for all others even while they carry it about")
	var b strings.Builder
	for line := 1; b.Len() < size; line++ {
		fmt.Fprintf(&b, "line %d:", line)
		for range 12 {
			b.WriteString(" " + words[random.Uint64()%uint64(len(words))])
		}
		b.WriteString(".\n")
	}
	return []byte(b.String()[:size])
}

// oddKeys are keys that some client, proxy or store handles wrongly. A store
// on a file system does not accept all of them.
var oddKeys = []string{
	"odd/with space",
	"odd/two  spaces",
	"odd/plus+plus",
	"odd/percent%",
	"odd/percent%20twenty",
	"odd/encoded%2Fslash",
	"odd/umlaut-ü",
	"odd/日本語/キー",
	"odd/emoji-🔑",
	"odd/and&equals=",
	"odd/question?mark",
	"odd/hash#mark",
	"odd/quote'single",
	`odd/quote"double`,
	"odd/xml<&>entity&amp;",
	"odd/semi;colon:comma,",
	"odd/paren()[]{}",
	"odd/star*tilde~bang!",
	"odd/dollar$at@",
	`odd/back\slash`,
	"odd/trailing.dots..",
	"odd/..leading.dots",
	"odd/double//slash",
	"odd/dot/./segment",
	"odd/dots/../segment",
	"odd/trailing/slash/",
}
