package kms

import (
	"encoding/hex"
	"testing"
)

// The encoding is part of the format, because stored blobs depend on it.
func TestAssociatedData(t *testing.T) {
	const label = "636d656b70726f787920636f6e74657874207631"
	for _, c := range []struct {
		name string
		ec   EncryptionContext
		want string
	}{
		{"none", nil, label + "00000000"},
		{"empty", EncryptionContext{}, label + "00000000"},
		{
			"an object",
			EncryptionContext{"key": "k", "bucket": "b"},
			label + "00000002" + "0000000000000006" + "6275636b6574" + "0000000000000001" + "62" +
				"0000000000000003" + "6b6579" + "0000000000000001" + "6b",
		},
		{"empty value", EncryptionContext{"a": ""}, label + "00000001" + "0000000000000001" + "61" +
			"0000000000000000"},
	} {
		if got := hex.EncodeToString(associatedData(c.ec)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
