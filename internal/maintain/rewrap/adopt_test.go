package rewrap_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// movedLab is a lab whose object was copied within the store to another
// name.
type movedLab struct {
	*lab
	at crypt.Object
}

// adoptLabs runs a test with each kind of object: with a local key, with one
// in AWS KMS, which refuses another encryption context, and with a bucket key,
// whose encryption context has only the bucket. If only is not empty, it has
// the names of the labs to use.
func adoptLabs(t *testing.T, run func(l *movedLab), only ...string) {
	t.Helper()
	for name, key := range map[string]func(*testing.T) kms.Wrapper{
		"local":   localKey,
		"aws-kms": func(t *testing.T) kms.Wrapper { return kmstest.StartTest(t).NewKey(t, nil) },
		"shared":  localKey,
	} {
		for _, kind := range []string{"single", "multipart"} {
			if len(only) > 0 && !slices.Contains(only, name+"/"+kind) {
				continue
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				l := &movedLab{lab: newLabOf(t, key(t), key(t))}
				l.cfg.To = ""
				if name == "shared" {
					l.keys = l.sharing()
				} else {
					l.added = map[string]string{"tenant": "acme"}
				}
				if kind == "multipart" {
					l.putParts()
				} else {
					l.put(nil)
				}

				l.at = crypt.Object{Bucket: bucket, Key: "moved/" + t.Name()}
				l.cfg.OldName = func(crypt.Object) (crypt.Object, error) { return l.obj, nil }
				l.copyTo(l.at, l.obj, 0)
				run(l)
			})
		}
	}
}

// sharing returns a keyring that uses one bucket key for many objects.
func (l *movedLab) sharing() *keyring.Keyring {
	return proxytest.NewKeyring(l.T, keyring.Config{
		Keys: []keyring.Key{{Name: "old", Wrapper: l.old}, {Name: "new", Wrapper: l.fresh}},
		Rules: []keyring.Rule{{
			Key: "old", AskedKeys: []string{"*"}, Reuse: &keyring.Reuse{MaxAge: time.Hour, MaxObjects: 1000, MaxBytes: 1 << 40},
		}},
	})
}

// copyTo copies an object within the store, as a backup does. If cut is not
// 0, it does so in parts of that many bytes.
func (l *movedLab) copyTo(to, from crypt.Object, cut int64) {
	l.Helper()
	source := http.Header{"X-Amz-Copy-Source": {"/" + from.Bucket + "/" + from.Key}}
	if cut == 0 {
		if err := store.Ask(l.Context(), http.MethodPut, to.Key, source, nil); err != nil {
			l.Fatal(err)
		}
		return
	}

	seen, err := (&stored.Reader{Send: send}).Look(l.Context(), stored.Request{Object: from})
	if err != nil {
		l.Fatal(err)
	}
	header := make(http.Header)
	for name, values := range seen.Header {
		if strings.HasPrefix(name, stored.MetaPrefix) {
			header[name] = values
		}
	}

	resp, err := send(inplace.NewRequest(l.Context(), http.MethodGet, from, "", nil, nil))
	if err != nil {
		l.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.Fatal(err)
	}

	up, err := l.cfg.Store().Create(l.Context(), to, header)
	if err != nil {
		l.Fatal(err)
	}
	for number := 1; len(body) > 0; number++ {
		n := min(cut, int64(len(body)))
		if err := up.Send(l.Context(), number, &inplace.Payload{Body: bytes.NewReader(body[:n]), Length: n}); err != nil {
			l.Fatal(err)
		}
		body = body[n:]
	}
	if err := up.Complete(l.Context(), ""); err != nil {
		l.Fatal(err)
	}
}

func (l *movedLab) adopt(want walk.Outcome) walk.Result {
	l.Helper()
	r := rewrap.New(l.cfg).Move(l.Context(), bucket, stored.Entry{Key: l.at.Key})
	if r.Outcome != want {
		l.Fatalf("outcome %d, not %d: %+v", r.Outcome, want, r)
	}
	return r
}

// etag returns the ETag of the moved object.
func (l *movedLab) etag() string {
	l.Helper()
	seen, err := l.reader().Look(l.Context(), stored.Request{Object: l.at})
	if err != nil {
		l.Fatal(err)
	}
	return seen.ETag + seen.Header.Get("X-Amz-Meta-Cmek-Mac")
}

// readAt reads the moved object under its own name.
func (l *movedLab) readAt() error {
	o, err := l.reader().Get(l.Context(), stored.Request{
		Object: l.at, Plaintext: func(int64) error { return errors.New("plaintext") },
	})
	if err != nil {
		return err
	}
	defer o.Close()
	text, err := io.ReadAll(o.Reader(l.Context()))
	if err == nil && (!bytes.Equal(text, l.text) || o.Size != int64(len(l.text))) {
		err = errors.New("other bytes than were stored")
	}
	return err
}

func TestAdopt(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		if err := l.readAt(); err == nil {
			l.Fatal("it can be read before")
		}

		l.cfg.DryRun = true
		before := l.etag()
		if r := l.adopt(walk.Done); r.Size != int64(len(l.text)) || l.etag() != before {
			l.Errorf("the dry run: %+v", r)
		}
		l.cfg.DryRun = false

		l.cfg.Keys, *l.calls = ring(l.T, l.old, l.fresh), calls{} // with nothing in its cache
		l.adopt(walk.Done)
		if want := (counts{wrap: 1, unwrap: 2}); l.counted() != want {
			l.Errorf("%+v, not %+v", l.counted(), want)
		}
		if err := l.readAt(); err != nil {
			l.Error(err)
		}

		before = l.etag()
		l.cfg.Keys, *l.calls = ring(l.T, l.old, l.fresh), calls{}
		l.adopt(walk.Current)
		if want := (counts{unwrap: 2}); l.counted() != want {
			l.Errorf("for the second run %+v, not %+v", l.counted(), want)
		}
		if l.etag() != before {
			l.Error("the second run has written it")
		}

		l.readOld() // it is still there under its old name
	})
}

// counts are numbers of KMS calls.
type counts struct{ wrap, unwrap int }

func (l *movedLab) counted() counts {
	l.calls.mu.Lock()
	defer l.calls.mu.Unlock()
	return counts{l.calls.wrap, l.calls.unwrap}
}

// readOld checks that the object is still what it was under its old name.
func (l *movedLab) readOld() {
	l.Helper()
	if id := l.read(); id != l.id("old") {
		l.Errorf("under %s", id)
	}
}

// With the method copy, the body stays in the store.
func TestAdoptByCopy(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		l.cfg.Method, l.cfg.Abilities.CopyIfMatch = rewrap.Copy, true
		l.cfg.Send = asCopy(nil, nil)
		l.adopt(walk.Done)
		if err := l.readAt(); err != nil {
			l.Error(err)
		}
	}, "local/single", "local/multipart")
}

// The rules of the new name choose the key.
func TestAdoptToAnotherKey(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		l.cfg.To = "new"
		l.adopt(walk.Done)
		if err := l.readAt(); err != nil {
			l.Error(err)
		}
		l.obj = l.at
		if id := l.read(); id != l.id("new") {
			l.Errorf("under %s", id)
		}
	}, "local/single", "local/multipart")
}

// Nothing but the operator's pair of names makes an object appear under a
// new name.
func TestAdoptRefuses(t *testing.T) {
	rows := []struct {
		name   string
		change func(l *movedLab)
		want   string
	}{
		{"another old key", func(l *movedLab) {
			l.cfg.OldName = func(crypt.Object) (crypt.Object, error) {
				return crypt.Object{Bucket: bucket, Key: "other"}, nil
			}
		}, "belongs to another name"},
		{"another old bucket", func(l *movedLab) {
			l.cfg.OldName = func(crypt.Object) (crypt.Object, error) {
				return crypt.Object{Bucket: "other", Key: l.obj.Key}, nil
			}
		}, "belongs to another name"},
		{"no old name", func(l *movedLab) {
			l.cfg.OldName = func(crypt.Object) (crypt.Object, error) { return crypt.Object{}, errors.New("no name") }
		}, "no name"},
		{"swapped for another object of the old bucket", func(l *movedLab) {
			l.swap()
		}, "belongs to another name"},
		{"an envelope or a part of another object", func(l *movedLab) { l.mix() }, "belongs to another name"},
		{"no rule names the key", func(l *movedLab) {
			l.cfg.Keys = proxytest.NewKeyring(l.T, keyring.Config{
				Keys:  []keyring.Key{{Name: "old", Wrapper: l.old}, {Name: "new", Wrapper: l.fresh}},
				Rules: []keyring.Rule{{Key: "new"}},
			})
		}, "read_keys"},
		{"another key", func(l *movedLab) {
			l.cfg.Keys = proxytest.NewKeyring(l.T, keyring.Config{
				Keys:  []keyring.Key{{Name: "new", Wrapper: l.fresh}},
				Rules: []keyring.Rule{{Key: "new"}},
			})
		}, "unknown key"},
	}

	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			adoptLabs(t, func(l *movedLab) {
				row.change(l)
				before := l.etag()
				r := l.adopt(walk.Failed)
				if !strings.Contains(r.Err.Error(), row.want) {
					l.Errorf("it does not say %q: %v", row.want, r.Err)
				}
				if l.etag() != before || l.readAt() == nil {
					l.Error("it was written, or can be read")
				}
			}, "local/multipart", "aws-kms/single", "shared/single")
		})
	}
}

// swap replaces the moved object by another object of the old bucket.
func (l *movedLab) swap() {
	l.Helper()
	mine := l.obj
	defer func() { l.obj = mine }()
	l.obj.Key += "-other"
	if len(l.text) > crypt.MinPartSize {
		l.putParts()
	} else {
		l.put(nil)
	}
	l.copyTo(l.at, l.obj, 0)
}

// mix gives the moved object the last part of another object, or a single-PUT
// object another's envelope.
func (l *movedLab) mix() {
	l.Helper()
	body := l.stored(l.at)
	l.swap()
	other := l.stored(l.at)

	header := make(http.Header)
	seen, err := l.reader().Look(l.Context(), stored.Request{Object: l.at})
	if err != nil {
		l.Fatal(err)
	}
	for name, values := range seen.Header {
		if strings.HasPrefix(name, stored.MetaPrefix) {
			header[name] = values
		}
	}

	if seen.Envelope == nil {
		at := crypt.MinPartSize + crypt.PartOverhead
		body = append(bytes.Clone(body[:at]), other[at:]...)
	}
	if err := store.Ask(l.Context(), http.MethodPut, l.at.Key, header, body); err != nil {
		l.Fatal(err)
	}
}

// stored returns the stored bytes of an object.
func (l *movedLab) stored(obj crypt.Object) []byte {
	l.Helper()
	resp, err := send(inplace.NewRequest(l.Context(), http.MethodGet, obj, "", nil, nil))
	if err != nil {
		l.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.Fatal(err)
	}
	return body
}

// A damaged body is not adopted: an object that reads as genuine must be.
func TestAdoptOfADamagedBody(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		body := l.stored(l.at)
		body[len(body)/2] ^= 1
		seen, err := l.reader().Look(l.Context(), stored.Request{Object: l.at})
		if err != nil {
			l.Fatal(err)
		}
		header := make(http.Header)
		for name, values := range seen.Header {
			if strings.HasPrefix(name, stored.MetaPrefix) {
				header[name] = values
			}
		}
		if err := store.Ask(l.Context(), http.MethodPut, l.at.Key, header, body); err != nil {
			l.Fatal(err)
		}

		before := l.etag()
		if r := l.adopt(walk.Failed); !errors.Is(r.Err, crypt.ErrAuth) {
			l.Error(r.Err)
		}
		if l.etag() != before {
			l.Error("it was written")
		}
	}, "local/single", "local/multipart")
}

// A client overwrites the object right before the new one is written: the
// client's object stays.
func TestAdoptKeepsWhatAClientWrites(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		overwritten := false
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			writes := r.Method == http.MethodPut && r.URL.RawQuery == "" ||
				r.Method == http.MethodPost && strings.HasPrefix(r.URL.RawQuery, "uploadId")
			if writes && !overwritten {
				overwritten = true
				old := l.obj
				l.obj, l.text = l.at, make([]byte, 1234)
				rand.Read(l.text)
				l.put(nil)
				l.obj = old
			}
			return send(r)
		}

		l.adopt(walk.Current)
		if err := l.readAt(); err != nil || !overwritten {
			l.Errorf("overwritten: %t, %v", overwritten, err)
		}
	})
}

// Tools copy large objects in parts of their own size. Then the number of
// parts in the ETag is another one, and readers compute another size from it.
func TestAdoptOfWhatWasCutAnew(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		if len(l.text) < crypt.MinPartSize {
			l.text = make([]byte, 6<<20)
			rand.Read(l.text)
			l.put(nil)
		}
		l.copyTo(l.at, l.obj, 1<<30)
		if n := l.etag(); !strings.Contains(n, `-1"`) {
			l.Fatal(n)
		}
		l.adopt(walk.Done)
		if err := l.readAt(); err != nil {
			l.Error(err)
		}
		l.adopt(walk.Current)
	}, "local/single", "local/multipart")
}

// The same, under its own name: a restore in place.
func TestAdoptUnderTheSameName(t *testing.T) {
	adoptLabs(t, func(l *movedLab) {
		backup := l.at
		l.at = l.obj
		for cut, readable := range map[int64]bool{0: true, 1 << 30: len(l.text) < crypt.MinPartSize} {
			if err := store.Ask(l.Context(), http.MethodDelete, l.obj.Key, nil, nil); err != nil {
				l.Fatal(err)
			}
			l.copyTo(l.obj, backup, cut)

			want := walk.Current
			if !readable {
				want = walk.Done
			}
			if err := l.readAt(); (err == nil) != readable {
				l.Error("before:", err)
			}
			l.adopt(want)
			if err := l.readAt(); err != nil {
				l.Error("after:", err)
			}
		}
	}, "local/single", "local/multipart")
}
