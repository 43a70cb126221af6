package rewrap_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Objects move to the version of the format that is configured, and their
// metadata is sealed if the rules say so. What is sealed stays sealed. The
// second run finds nothing to do.
func TestFormats(t *testing.T) {
	for _, row := range []struct {
		name     string
		from, to keyring.Format
		moved    bool
		want     keyring.Format
	}{
		{"to version 2", keyring.Format{Version: crypt.V1}, keyring.Format{}, true, keyring.Format{Version: crypt.V2}},
		{"the same", keyring.Format{}, keyring.Format{}, false, keyring.Format{Version: crypt.V2}},
		{
			"back to version 1",
			keyring.Format{},
			keyring.Format{Version: crypt.V1},
			false,
			keyring.Format{Version: crypt.V2},
		},
		{
			"sealed",
			keyring.Format{Version: crypt.V1},
			keyring.Format{SealMetadata: true},
			true,
			keyring.Format{Version: crypt.V2, SealMetadata: true},
		},
		{
			"version 2 sealed",
			keyring.Format{},
			keyring.Format{SealMetadata: true},
			true,
			keyring.Format{Version: crypt.V2, SealMetadata: true},
		},
	} {
		for name, put := range map[string]func(*lab){
			"single": func(l *lab) { l.put(nil) }, "parts": (*lab).putParts,
		} {
			t.Run(row.name+" "+name, func(t *testing.T) {
				l := newLab(t, localKey(t))
				l.cfg.To = "old" // the key stays
				l.write(row.from, put)
				l.useFormat(row.to)

				want := walk.Current
				if row.moved {
					want = walk.Done
				}
				if r := l.moveNow(); r.Outcome != want {
					t.Fatalf("%+v", r)
				}
				if r := l.moveNow(); r.Outcome != walk.Current {
					t.Errorf("the second run: %+v", r)
				}
				l.read()
				if got := l.written(); got != row.want {
					t.Errorf("written as %+v", got)
				}

				// To another key, what is sealed stays sealed.
				l.cfg.To = "new"
				l.useFormat(keyring.Format{})
				if r := l.moveNow(); r.Outcome != walk.Done {
					t.Fatalf("%+v", r)
				}
				if id := l.read(); id != l.id("new") {
					t.Errorf("under %s", id)
				}
				if got := l.written(); got != row.want {
					t.Errorf("under another key as %+v", got)
				}
			})
		}
	}
}

// write stores the object in a format.
func (l *lab) write(f keyring.Format, put func(*lab)) {
	l.Helper()
	l.format = f
	put(l)
}

// useFormat configures the format for new objects.
func (l *lab) useFormat(f keyring.Format) {
	l.Helper()
	cfg := ringConfig(l.old, l.fresh)
	cfg.FormatVersion = f.Version
	for i := range cfg.Rules {
		cfg.Rules[i].SealMetadata = f.SealMetadata
	}
	l.cfg.Keys = proxytest.NewKeyring(l.T, cfg)
}

func (l *lab) moveNow() walk.Result {
	l.Helper()
	return rewrap.New(l.cfg).Move(l.Context(), bucket, stored.Entry{Key: l.obj.Key})
}

// written returns how the object is stored, and checks that the store sees no
// sealed metadata.
func (l *lab) written() keyring.Format {
	l.Helper()
	seen, err := l.reader().Look(l.Context(), l.request())
	if err != nil {
		l.Fatal(err)
	}
	f := keyring.Format{Version: seen.Version(), SealMetadata: seen.Metadata() != nil}
	if visible := strings.Contains(allOf(seen.Header), "value"); visible == f.SealMetadata {
		l.Errorf("sealed: %t, and the store has %v", f.SealMetadata, seen.Header)
	}
	return f
}

func allOf(h http.Header) string {
	var all []string
	for _, values := range h {
		all = append(all, values...)
	}
	return strings.Join(all, " ")
}
