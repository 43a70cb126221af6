package rewrap_test

import (
	"errors"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// An object that nothing proves to be genuine is bound only if the operator
// asks for it.
func TestRewrapBindsOnDemandOnly(t *testing.T) {
	server := kmstest.StartAzure(t)
	plain := server.NewKey(t, "RSA-2048", nil)
	binding, err := plain.Bind(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	bound := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{binding} })

	strict := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings, c.AcceptForm = []string{binding}, 2 })
	second, err := plain.Bind(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	both := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings = []string{second, binding} })
	next := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.Bindings, c.AcceptForm = []string{second}, 2 })

	other := localKey(t)

	for name, put := range map[string]func(*lab){"whole": func(*lab) {}, "multipart": (*lab).putParts} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, localKey(t))
			l.keys, l.cfg.Keys = ring(t, plain, other), ring(t, bound, other)
			again := ring(t, bound, other)
			l.cfg.Check = proxytest.Opening(again)
			l.put(nil)
			put(l)

			if got := l.forms(); got[0] != 1 {
				t.Fatalf("stored in form %d", got[0])
			}

			l.cfg.To = "new"
			if r := l.moved(); !errors.Is(r.Err, keyring.ErrUnbound) {
				t.Errorf("to another key: %+v", r)
			}
			l.cfg.To = "old"

			if r := l.moved(); r.Outcome != walk.Current || r.Err != nil || l.forms()[0] != 1 {
				t.Errorf("under the same key: %+v, form %d", r, l.forms()[0])
			}

			l.cfg.Bind = true
			if r := l.moved(); r.Outcome != walk.Done || r.Err != nil {
				t.Errorf("with --bind: %+v", r)
			}

			for _, form := range l.forms() {
				if form != 2 {
					t.Errorf("bound, and of form %d", form)
				}
			}
			l.keys = ring(t, strict, other)
			l.read()

			if r := l.moved(); r.Outcome != walk.Current || r.Err != nil {
				t.Errorf("a second time: %+v", r)
			}

			l.cfg.Bind, l.cfg.All, l.cfg.Keys = false, true, ring(t, both, other)
			l.cfg.Check = proxytest.Opening(ring(t, both, other))
			if r := l.moved(); r.Outcome != walk.Done || r.Err != nil {
				t.Errorf("to the next binding: %+v", r)
			}
			l.keys = ring(t, next, other)
			l.read()

			if r := l.moved(); r.Outcome != walk.Current || r.Err != nil {
				t.Errorf("to the next binding a second time: %+v", r)
			}
		})
	}
}

func (l *lab) moved() walk.Result {
	return rewrap.New(l.cfg).Move(l.Context(), bucket, stored.Entry{Key: l.obj.Key})
}
