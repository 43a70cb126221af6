package s3api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// twoForms is a bound Azure key that can make blobs of form 1, as anyone
// with its public key can.
type twoForms struct {
	*kms.Azure
	old atomic.Bool
}

func (w *twoForms) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	if w.old.Load() {
		ctx = kms.KeepUnbound(ctx)
	}
	return w.Azure.Wrap(ctx, dek, ec)
}

// A copy of an object that nothing proves to be genuine must not look
// genuine. Under the same key it keeps its form. It is refused if a new data
// key would vouch for it.
func TestCopiesVouchForNothing(t *testing.T) {
	azure, _ := kmstest.StartAzure(t).NewBoundKey(t, "RSA-2048", nil)
	key := &twoForms{Azure: azure}
	secondRule, _ := withSecondKey(t)
	p := newProxy(t, secondRule, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Keys[0].Wrapper = kms.Retry(key, kms.RetryConfig{})
	})

	form := func(name string) byte {
		_, head := p.stored(name)
		blob, err := base64.StdEncoding.DecodeString(head.Get("X-Amz-Meta-Cmek-Dek"))
		if err != nil || len(blob) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		return blob[0]
	}

	text := randomText(100_000)
	key.old.Store(true)
	p.put("old", text)
	parts := p.upload("parts", []int{5 << 20, 10})
	key.old.Store(false)
	p.put("bound", text)

	if old, bound := form("old"), form("bound"); old != 1 || bound != 2 {
		t.Fatalf("stored in forms %d and %d", old, bound)
	}

	p.mustCopy("old", "old copy")
	p.mustCopy("bound", "bound copy")
	p.mustCopy("bound", "other/bound copy")
	if old, bound := form("old copy"), form("bound copy"); old != 1 || bound != 2 {
		t.Errorf("copies are of forms %d and %d, want 1 and 2", old, bound)
	}

	for _, name := range []string{"old copy", "bound copy", "other/bound copy"} {
		if got, _, err := p.get(name); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}

	for _, names := range [][2]string{
		{"old", "other/copy"}, {"old copy", "other/copy"}, {parts.key, "copy"}, {parts.key, "other/copy"},
	} {
		t.Run(names[0]+" to "+names[1], func(t *testing.T) {
			if _, err := p.copy(names[0], names[1]); code(err) != "InvalidRequest" ||
				!strings.Contains(err.Error(), "rewrap") {
				t.Errorf("copying %s to %s: %v", names[0], names[1], err)
			}
			if p.isStored(names[1]) {
				t.Errorf("copying %s to %s: something is stored", names[0], names[1])
			}
		})
	}

	m := p.create("target")
	for source, want := range map[string]string{"old": "InvalidRequest", parts.key: "InvalidRequest", "bound": ""} {
		t.Run(source, func(t *testing.T) {
			_, err := p.client.UploadPartCopy(t.Context(), &s3.UploadPartCopyInput{
				Bucket: &p.bucket, Key: &m.key, UploadId: &m.id, PartNumber: new(int32(1)),
				CopySource: new(p.bucket + "/" + source),
			})
			if (err != nil) != (want != "") || err != nil && code(err) != want {
				t.Errorf("a part of %s: %v, want %q", source, err, want)
			}
		})
	}
}
