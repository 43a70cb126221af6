package storecheck

import (
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
)

// keyStore lists the stored keys, as converted by name. It supports nothing
// else.
type keyStore struct {
	name func(key string) (string, bool)

	mu    sync.Mutex
	keys  []string
	asked []string
}

func (s *keyStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("X-Amz-Request-Id", "1")
	key, object := strings.CutPrefix(r.URL.Path, "/bucket/")
	s.asked = append(s.asked, r.URL.Path)

	switch name, ok := s.name(key); {
	case !object:
		type content struct{ Key string }
		var doc struct {
			XMLName  xml.Name `xml:"ListBucketResult"`
			Contents []content
		}
		for _, k := range s.keys {
			doc.Contents = append(doc.Contents, content{k})
		}

		text, _ := xml.Marshal(doc)
		w.Header().Set("Content-Type", "application/xml")
		_, _ = w.Write(text)
	case !ok:
		w.WriteHeader(http.StatusBadRequest)
	case r.Method == http.MethodPut:
		s.keys = append(s.keys, name)
		w.Header().Set("Etag", `"1"`)
	default:
		s.keys = slices.DeleteFunc(s.keys, func(k string) bool { return k == name })
		w.WriteHeader(http.StatusNoContent)
	}
}

func TestProbeOfKeys(t *testing.T) {
	for name, row := range map[string]struct {
		store                  func(string) (string, bool)
		configured, want, fail string
	}{
		"as they are": {
			func(k string) (string, bool) { return k, true }, "", "with origin.keys: literal", "",
		},
		"as they are, and known": {func(k string) (string, bool) { return k, true }, "literal", "taken literally", ""},
		"as they are, said to be path": {
			func(k string) (string, bool) { return k, true }, "path", "with origin.keys: literal", "",
		},
		"as paths": {
			func(k string) (string, bool) { return path.Clean(k), true }, "", "set origin.keys to path", "",
		},
		"as paths, said to be literal": {
			func(k string) (string, bool) { return path.Clean(k), true }, "literal", "", "set origin.keys to path",
		},
		"not at all": {func(string) (string, bool) { return "", false }, "", "set origin.keys to path", ""},
		"slashes only": {
			func(k string) (string, bool) { return strings.ReplaceAll(k, "//", "/"), true }, "literal", "",
			"set origin.keys to path",
		},
	} {
		store := &keyStore{name: row.store}
		server := httptest.NewServer(store)
		probe := &Probe{send: sendTo(server.URL), bucket: "bucket", name: ".check"}
		detail, err := probe.Keys(t.Context(), row.configured)

		switch {
		case row.fail == "" && (err != nil || !strings.Contains(detail, row.want)):
			t.Errorf("%s: %q, %v", name, detail, err)
		case row.fail != "" && (err == nil || !strings.Contains(err.Error(), row.fail)):
			t.Errorf("%s: %q, %v", name, detail, err)
		}

		if len(store.keys) > 0 {
			t.Errorf("%s: the probe leaves %q", name, store.keys)
		}

		for _, asked := range store.asked {
			if asked != "/bucket" && !strings.HasPrefix(path.Clean(asked), "/bucket/.check-keys/") {
				t.Errorf("%s: the probe asked for %s", name, asked)
			}
		}
		server.Close()
	}
}

// sendTo sends requests for the store to a server.
func sendTo(server string) inplace.Sender {
	answer := func(*http.Request, *http.Response) error { return nil }
	refusal := func(*http.Request, int, string, []byte) error { return nil }
	return inplace.NewSender(redirected{server}, answer, refusal)
}

// redirected sends requests for the store to a server.
type redirected struct{ server string }

func (s redirected) RoundTrip(r *http.Request) (*http.Response, error) {
	u, err := url.Parse(s.server)
	if err != nil {
		return nil, err
	}
	out := r.Clone(r.Context())
	out.URL.Host, out.Host = u.Host, u.Host
	return http.DefaultTransport.RoundTrip(out)
}
