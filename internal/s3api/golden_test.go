package s3api

import (
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// Clients keep upload ids for days, and replicas of different versions must
// read each other's. So the encoding of an id never changes.
func TestUploadIDsGolden(t *testing.T) {
	const stored = "VXBsb2FkIElE"
	customer := &keyring.DataKey{Wrapped: []byte{0, 1, 2, 0xfd, 0xfe, 0xff}}
	for name, row := range map[string]struct {
		wanted keyring.Choice
		sealed *keyring.DataKey
		id     string
		mark   crypt.Mark
	}{
		"nothing asked for": {keyring.Choice{}, nil, stored, crypt.Mark{}},
		"a key": {
			keyring.Choice{KeyID: "arn:aws:kms:eu:1:key/2"},
			nil, stored + ".cmek.eyJrZXkiOiJhcm46YXdzOmttczpldToxOmtleS8yIn0",
			crypt.Mark{},
		},
		"a context": {
			keyring.Choice{Context: map[string]string{"tenant": "acme", "a": "<&>"}},
			nil,
			stored + ".cmek.eyJjb250ZXh0Ijp7ImEiOiJcdTAwM2NcdTAwMjZcdTAwM2UiLCJ0ZW5hbnQiOiJhY21lIn19",
			crypt.Mark{},
		},
		"a customer's key": {
			keyring.Choice{CustomerKey: make([]byte, 32)},
			customer,
			stored + ".cmek.eyJzZWFsZWQiOiJBQUVDL2Y3LyJ9",
			crypt.Mark{},
		},
		"all of them": {
			keyring.Choice{KeyID: "k", Context: map[string]string{"c": "d"}, CustomerKey: make([]byte, 32)},
			customer,
			stored + ".cmek.eyJrZXkiOiJrIiwiY29udGV4dCI6eyJjIjoiZCJ9LCJzZWFsZWQiOiJBQUVDL2Y3LyJ9",
			crypt.Mark{},
		},
		"version 2": {
			keyring.Choice{},
			nil, stored + ".cmek.eyJyYW5kb20iOiJBUUFBQUFBQUFBQUFBQUFBQUFBQUFBPT0ifQ",
			crypt.Mark{Random: crypt.UploadRandom{1}},
		},
		"version 2 with sealed metadata": {
			keyring.Choice{},
			nil, stored + ".cmek.eyJyYW5kb20iOiJBUUFBQUFBQUFBQUFBQUFBQUFBQUFBPT0iLCJtZXRhIjp0cnVlfQ",
			crypt.Mark{Random: crypt.UploadRandom{1}, Meta: []byte{1}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ref, err := newUploadRef(stored, row.wanted, row.sealed, &row.mark)
			if err != nil || ref.shown != row.id {
				t.Errorf("%s, %v, want %s", ref.shown, err, row.id)
			}

			back, err := parseUploadRef(row.id)
			if err != nil || back.stored != stored || back.wanted.KeyID != row.wanted.KeyID || back.random != row.mark.Random {
				t.Errorf("read back: %+v, %v", back, err)
			}
		})
	}
}
