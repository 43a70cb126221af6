//go:build !nodev

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// An object that the store lists under another name than it was put under is
// not reported as damage, and can be read by the name in the report.
func TestVerifyFindsFoldedNames(t *testing.T) {
	const mib = 1 << 20
	m := newMove(t)
	// A proxy that knows no better, as before it asked the store.
	m.stopProxy()
	m.app, m.stopProxy = m.serve(m.withKeys("literal"))
	m.put("a//b", text(1, 1000))
	m.put("/c", text(2, 300_000))
	m.put("x/y//z", text(3, 0))
	m.put("dots/./k", text(4, 10))
	m.upload("p//q", []int32{1, 2}, 5*mib, 5*mib)
	m.put("good", text(5, 1000))

	m.put("flipped//k", text(6, 1000))
	flipped := m.raw("flipped//k")
	flipped.body[len(flipped.body)-1] ^= 1
	m.putRaw("flipped//k", flipped.metadata, flipped.body)
	moved := m.raw("good")
	m.putRaw("moved", moved.metadata, moved.body)

	want := map[string]string{
		"a/b": "name old", "c": "name old", "x/y/z": "name old", "dots/k": "name old", "p/q": "name old",
		"flipped/k": "integrity old", "moved": "integrity old",
	}
	names := map[string]string{"a/b": "a//b", "c": "/c", "x/y/z": "x/y//z", "dots/k": "dots/./k", "p/q": "p//q"}
	for setting, config := range map[string]string{"unset": m.denying(), "path": m.withKeys("path")} {
		t.Run("origin.keys "+setting, func(t *testing.T) {
			got, totals := m.verified(config, 1)
			if fmt.Sprint(got) != fmt.Sprint(want) || totals.Verified != 1 || totals.Faults["name"] != 5 {
				t.Errorf("%v, %+v; want %v", got, totals, want)
			}

			table := m.command(1, "verify", "--config", config, "s3://bucket")
			for listed, put := range names {
				if !strings.Contains(table, listed+": it is intact, but was put under the name \""+put+"\"") {
					t.Errorf("%s is not explained:\n%s", listed, table)
				}
				file := filepath.Join(t.TempDir(), "out")
				m.command(0, "decrypt", "--config", config, "s3://bucket/"+put, "-o", file)
				if body, err := os.ReadFile(file); err != nil || sha256.Sum256(body) != m.texts[put] {
					t.Errorf("%s: it cannot be decrypted by its name: %v", put, err)
				}
			}
		})
	}

	// At a store that keeps names as they are, such an object was moved.
	got, _ := m.verified(m.withKeys("literal"), 1)
	for listed := range names {
		if got[listed] != "integrity old" {
			t.Errorf("origin.keys literal, %s: %s", listed, got[listed])
		}
	}

	// A copy to the listed name mends an object.
	for listed, put := range names {
		source := url.PathEscape(m.bucket + "/" + put)
		if _, err := m.app.CopyObject(t.Context(), &s3.CopyObjectInput{
			Bucket: &m.bucket, Key: &listed, CopySource: &source,
		}); err != nil {
			t.Errorf("%s: %v", put, err)
		}
		m.texts[listed] = m.texts[put]
	}
	got, totals := m.verified(m.denying(), 1)
	if len(got) != 2 || totals.Verified != 6 {
		t.Errorf("after the copies: %v, %+v", got, totals)
	}
}

// withKeys returns the configuration with a value of origin.keys.
func (m *move) withKeys(value string) string {
	m.t.Helper()
	content, err := os.ReadFile(m.denying())
	if err != nil {
		m.t.Fatal(err)
	}
	content = bytes.Replace(content, []byte("region: us-east-1,"), []byte("region: us-east-1, keys: "+value+","), 1)
	path := filepath.Join(m.dir, "keys-"+value+".yaml")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}
