package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// named is a small store of objects that were put under another name than the
// one they have now.
type named struct {
	t       *testing.T
	keys    *keyring.Keyring
	folds   bool
	bodies  map[string][]byte
	headers map[string]map[string]string

	asked []string // requests
	opens []string // names under which a data key was unwrapped
}

func newNamed(t *testing.T, folds bool) *named {
	t.Helper()
	key, _ := proxytest.NewLocalKey(t)
	return &named{
		t: t, folds: folds, bodies: make(map[string][]byte), headers: make(map[string]map[string]string),
		keys: proxytest.NewKeyring(t, keyring.Config{
			Keys: []keyring.Key{{Name: "key", Wrapper: key}}, Rules: []keyring.Rule{{Key: "key"}},
		}),
	}
}

// add stores an object that was put under a name, where name is now.
func (n *named) add(put, now string) {
	n.bodies[now], n.headers[now] = sealed(n.t, n.keys, crypt.Object{Bucket: "b", Key: put}, 1000)
}

func (n *named) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Path[len("/b/"):]
	n.asked = append(n.asked, r.Method+" "+key)
	if n.folds {
		key = keyname.Fold(key)
	}
	body, ok := n.bodies[key]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	for name, value := range n.headers[key] {
		w.Header().Set(stored.MetaPrefix+name, value)
	}
	w.Header().Set("Etag", `"e"`)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// verifier returns a Verifier. refuse, if not nil, is the error for the data
// keys of all names but the listed one.
func (n *named) verifier(listed string, refuse error) *verify.Verifier {
	server := httptest.NewServer(n)
	n.t.Cleanup(server.Close)
	address, err := url.Parse(server.URL)
	if err != nil {
		n.t.Fatal(err)
	}
	return verify.New(verify.Config{
		Send: func(r *http.Request) (*http.Response, error) {
			r.URL.Scheme, r.URL.Host = address.Scheme, address.Host
			resp, err := server.Client().Transport.RoundTrip(r)
			if err == nil && resp.StatusCode >= 300 {
				resp.Body.Close()
				return nil, answered(resp.StatusCode)
			}
			return resp, err
		},
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			n.opens = append(n.opens, obj.Key)
			if refuse != nil && obj.Key != listed {
				return nil, refuse
			}
			return proxytest.Opening(n.keys)(ctx, obj, keyID, wrapped)
		},
		AllowPlaintext: func(crypt.Object) bool { return false },
	})
}

// Only what the store really keeps under both names is reported as such, and
// only the bytes under the listed name are read.
func TestNames(t *testing.T) {
	for _, row := range []struct {
		name     string
		folds    bool
		put, now string
		other    string // name of another, intact object
		fault    verify.Fault
	}{
		{"a store that folds", true, "a//b", "a/b", "", verify.Name},
		{"a slash ahead", true, "/a/b", "a/b", "", verify.Name},
		{"both", true, "/a//b", "a/b", "", verify.Name},
		{"moved to another name", true, "c", "a/b", "", verify.Integrity},
		{"moved at a store that does not fold", false, "a//b", "a/b", "", verify.Integrity},
		{"altered, with an intact neighbor", false, "c", "a/b", "a//b", verify.Integrity},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := newNamed(t, row.folds)
			n.add(row.put, row.now)
			if row.other != "" {
				n.add(row.other, row.other)
			}
			r := n.verifier("a/b", nil).Verify(t.Context(), "b", stored.Entry{Key: "a/b"})

			var renamed *verify.NameError
			if r.Outcome != walk.Failed || verify.FaultOf(r.Err) != row.fault || !r.Own ||
				errors.As(r.Err, &renamed) != (row.fault == verify.Name) || renamed != nil && renamed.Put != row.put {
				t.Errorf("%+v: %v", r, r.Err)
			}
			if len(n.opens) > 17 {
				t.Errorf("%d data keys were unwrapped", len(n.opens))
			}
			for _, asked := range n.asked {
				if asked != "GET a/b" && asked != "HEAD a/b" && asked != "HEAD "+row.put {
					t.Errorf("the store was asked %s", asked)
				}
			}
		})
	}
}

// A KMS that refuses the key, or does not answer, is not asked for more
// names.
func TestNamesEndAtTheKMS(t *testing.T) {
	for _, kind := range []kms.Kind{kms.Disabled, kms.Denied, kms.Throttled, kms.Unreachable} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			n := newNamed(t, true)
			n.add("a/b/c//d", "a/b/c/d")
			v := n.verifier("a/b/c/d", &kms.Error{Kind: kind, Op: "unwrap"})
			r := v.Verify(t.Context(), "b", stored.Entry{Key: "a/b/c/d"})
			if verify.FaultOf(r.Err) != verify.Integrity || len(n.opens) != 2 {
				t.Errorf("%v after %q", r.Err, n.opens)
			}
		})
	}
}

// In a bucket where every object fails, names are tried for the first only.
func TestNamesAreNotTriedInVain(t *testing.T) {
	n := newNamed(t, true)
	n.add("elsewhere", "a/b")
	v := n.verifier("a/b", nil)
	for range 150 {
		if r := v.Verify(t.Context(), "b", stored.Entry{Key: "a/b"}); verify.FaultOf(r.Err) != verify.Integrity {
			t.Fatal(r.Err)
		}
	}
	if each := 1 + len(keyname.Unfold("a/b")); len(n.opens) != 100*each+50 {
		t.Errorf("%d data keys were unwrapped, want %d", len(n.opens), 100*each+50)
	}
}
