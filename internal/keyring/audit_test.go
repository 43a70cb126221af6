package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// trail is an auditor that records events and can be full.
type trail struct {
	mu     sync.Mutex
	events []keyring.Event
	full   atomic.Bool
	takes  time.Duration
}

var errFull = errors.New("no space left")

type requestKey struct{}

func (a *trail) Audit(ctx context.Context, e keyring.Event) error {
	time.Sleep(a.takes)
	a.mu.Lock()
	defer a.mu.Unlock()

	if a.full.Load() {
		return errFull
	}
	if ctx.Value(requestKey{}) == nil && e.Action != keyring.ActionProbeRevoked {
		panic("an event without the values of its request")
	}

	a.events = append(a.events, e)
	return nil
}

// take returns the events since the last call, each as "action source
// error".
func (a *trail) take() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()

	for _, e := range a.events {
		text := string(e.Action) + " " + string(e.Source)
		if failure, ok := errors.AsType[*kms.Error](e.Err); ok {
			text += " " + failure.Kind.String()
		} else if e.Err != nil {
			text += " " + e.Err.Error()
		}

		out = append(out, text)
	}

	a.events = nil
	return out
}

func (a *trail) event(i int) keyring.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.events[i]
}

func (a *trail) want(t *testing.T, want ...string) {
	t.Helper()
	if got := a.take(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func withTrail(a *trail) func(*keyring.Config) {
	return func(c *keyring.Config) { c.Auditor = a }
}

// asRequest returns a context with the values of a request.
func asRequest(t testing.TB) context.Context {
	return context.WithValue(t.Context(), requestKey{}, true)
}

func TestEachUseIsAudited(t *testing.T) {
	server := kmstest.StartTest(t)
	w, audit, ctx := server.NewKey(t, nil), &trail{}, asRequest(t)
	k := newRing(t, w, time.Minute, withTrail(audit))
	sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
	must(t, err)
	defer sealed.Release()

	e := audit.event(0)
	if e.KeyName != "k" || e.KeyID != w.KeyID() || e.Object != obj || e.Err != nil || len(e.KMSRequestID) != 32 {
		t.Errorf("%+v", e)
	}

	audit.want(t, "create kms")

	open := func() {
		t.Helper()
		l, err := k.Open(ctx, obj, sealed.KeyID, sealed.Wrapped)
		if err == nil {
			l.Release()
		}
	}

	open()
	if e := audit.event(0); e.KMSRequestID != "" {
		t.Errorf("from the cache, with the KMS's request id %q", e.KMSRequestID)
	}

	k.PurgeAll()
	open()

	if e := audit.event(1); len(e.KMSRequestID) != 32 {
		t.Errorf("from the KMS, with its request id %q", e.KMSRequestID)
	}

	audit.want(t, "open cache", "open kms")

	k.PurgeAll()
	server.SetFaults(kmstest.Faults{Deny: true})
	open()

	if e := audit.event(0); len(e.KMSRequestID) != 32 {
		t.Errorf("refused by the KMS, with its request id %q", e.KMSRequestID)
	}

	open() // the refusal is remembered for one second
	if _, err := k.Create(ctx, obj, "app", keyring.Choice{}); !isKind(err, kms.Denied) {
		t.Errorf("created: %v", err)
	}

	audit.want(t, "open kms access denied", "open cache access denied", "create kms access denied")
}

func TestCopiesAndVersionsAreAudited(t *testing.T) {
	w, _ := newLocal(t)
	audit, ctx := &trail{}, asRequest(t)
	k := newRing(t, w, time.Minute, withTrail(audit))
	sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
	must(t, err)
	defer sealed.Release()

	to := keyring.Object{Bucket: "other", Key: "copy"}
	copied, err := k.Rewrap(ctx, sealed.Lease, to, "app", keyring.Choice{})
	must(t, err)
	copied.Release()

	if e := audit.event(1); e.Object != to || e.KeyVersion != "1" {
		t.Errorf("%+v", e)
	}

	audit.want(t, "create kms", "create kms")
	audit.full.Store(true)

	if _, err := k.Rewrap(ctx, sealed.Lease, to, "app", keyring.Choice{}); !errors.Is(err, keyring.ErrAudit) {
		t.Errorf("rewrapped: %v", err)
	}
}

func TestJoinedUsesAreAudited(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		audit, ctx := &trail{}, asRequest(t)
		k := newRing(t, &slow{Wrapper: w}, time.Minute, withTrail(audit))
		sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
		must(t, err)
		sealed.Release()
		k.PurgeAll()
		var wg sync.WaitGroup

		for range 3 {
			wg.Go(func() {
				l, err := k.Open(ctx, obj, sealed.KeyID, sealed.Wrapped)
				if err != nil {
					t.Error(err)
					return
				}
				l.Release()
			})
		}

		wg.Wait()
		got := audit.take()
		slices.Sort(got)

		if fmt.Sprint(got) != "[create kms open joined open joined open kms]" {
			t.Errorf("%q", got)
		}
	})
}

// A use that cannot be audited is refused, and the KMS's error is still
// visible.
func TestNoDEKWithoutAudit(t *testing.T) {
	w, _ := newLocal(t)
	audit, events, ctx := &trail{}, &seen{}, asRequest(t)
	s := &slow{Wrapper: w}
	k := newRing(t, s, time.Minute, func(c *keyring.Config) { c.Auditor, c.Observer = audit, events })
	sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
	must(t, err)
	defer sealed.Release()

	uses := events.uses(keyring.Created) + events.uses(keyring.Opened)
	audit.full.Store(true)

	if got, err := k.Create(ctx, obj, "app", keyring.Choice{}); got != nil || !errors.Is(err, keyring.ErrAudit) ||
		!errors.Is(err, errFull) {
		t.Errorf("created %v, %v", got, err)
	}

	for _, purge := range []bool{false, true} {
		if purge {
			k.PurgeAll()
		}
		if got, err := k.Open(ctx, obj, sealed.KeyID, sealed.Wrapped); got != nil || !errors.Is(err, keyring.ErrAudit) {
			t.Errorf("opened %v, %v", got, err)
		}
	}

	s.fail.Store(&kms.Error{Kind: kms.Disabled})
	k.PurgeAll()

	if _, err := k.Open(ctx, obj, sealed.KeyID, sealed.Wrapped); !isKind(err, kms.Disabled) ||
		errors.Is(err, keyring.ErrAudit) || !strings.Contains(err.Error(), errFull.Error()) {
		t.Errorf("%v, want disabled, and a word of the log", err)
	}
	if n := events.uses(keyring.Created) + events.uses(keyring.Opened); n != uses || k.Status()[0].Leases != 1 {
		t.Errorf("%d uses that were not audited, %d leases", n-uses, k.Status()[0].Leases)
	}
}

func TestRenewalsAreAudited(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, audit := &slow{Wrapper: w}, &trail{}
		k := newRing(t, s, time.Minute, func(c *keyring.Config) { c.Auditor, c.OutageWait = audit, 30*time.Second })
		ctx := asRequest(t)
		open := func() (*keyring.DataKey, *stream) {
			sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
			must(t, err)
			st := &stream{}
			st.drained.Store(true)

			sealed.Watch(ctx, func(err error) {
				st.at = time.Now()
				st.cut.Store(&err)
			}, st.drained.Load)

			return sealed, st
		}

		sealed, st := open()
		time.Sleep(59 * time.Second)
		audit.want(t, "create kms")
		time.Sleep(time.Second) // the watcher and the stream both ask: one renewal
		must(t, sealed.Check(ctx))
		synctest.Wait()

		if got := audit.take(); len(got) != 1 || got[0] != "renew kms" && got[0] != "renew joined" {
			t.Errorf("%q", got)
		}

		audit.full.Store(true) // before the next renewal, for less than OutageWait
		time.Sleep(time.Minute + 5*time.Second)

		if st.wasCut() != nil {
			t.Fatalf("cut before the wait was over: %v", st.wasCut())
		}

		asked := make(chan time.Duration)
		go func() {
			at := time.Now()
			if err := sealed.Check(ctx); err != nil {
				t.Errorf("the log is back: %v", err)
			}
			asked <- time.Since(at)
		}()

		time.Sleep(10 * time.Second)
		audit.full.Store(false)

		if d := <-asked; d < 10*time.Second || d > 13*time.Second {
			t.Errorf("a stream went on after %v, the log was back after 10s", d)
		}

		audit.want(t, "renew cache")
		sealed.Release()

		sealed, st = open() // now it remains full
		audit.take()
		start := time.Now()
		audit.full.Store(true)
		time.Sleep(2 * time.Minute)

		if err := st.wasCut(); !errors.Is(err, keyring.ErrAudit) {
			t.Errorf("%v, want a cut for the log", err)
		} else if d := st.at.Sub(start); d < 85*time.Second || d > 92*time.Second {
			t.Errorf("cut after %v, want 60s and 30s", d)
		}

		sealed.Release()
	})
}

// The end of a stream is audited once, whether the stream, its watcher or
// both notice. It is not audited if the client left.
func TestCutsAreAudited(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, audit := &slow{Wrapper: w}, &trail{}
		k := newRing(t, s, time.Minute, func(c *keyring.Config) { c.Auditor, c.OutageWait = audit, 10*time.Second })
		ctx := asRequest(t)

		for _, row := range []struct {
			watched, checked bool
		}{{true, true}, {true, false}, {false, true}} {
			s.fail.Store(nil)
			sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
			must(t, err)

			if row.watched {
				sealed.Watch(ctx, func(error) {}, func() bool { return true })
			}

			audit.take()
			s.fail.Store(&kms.Error{Kind: kms.Disabled})
			time.Sleep(time.Minute)

			if row.checked && sealed.Check(ctx) == nil {
				t.Error("goes on under a disabled key")
			}

			time.Sleep(5 * time.Second)
			got := audit.take()
			if len(got) != 1 || !strings.HasPrefix(got[0], "cut ") || !strings.HasSuffix(got[0], " key disabled") {
				t.Errorf("%+v: %q", row, got)
			}

			sealed.Release()
		}

		s.fail.Store(nil)
		sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
		must(t, err)
		defer sealed.Release()

		audit.take()
		s.fail.Store(&kms.Error{Kind: kms.Unreachable})
		time.Sleep(time.Minute)
		gone, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()

		if err := sealed.Check(gone); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		audit.want(t)
	})
}

// A slow audit log does not extend a lease.
func TestSlowAuditExtendsNothing(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		audit := &trail{}
		k := newRing(t, w, 10*time.Second, func(c *keyring.Config) { c.Auditor, c.OutageWait = audit, time.Minute })
		ctx := asRequest(t)
		sealed, err := k.Create(ctx, obj, "app", keyring.Choice{})
		must(t, err)
		defer sealed.Release()

		audit.takes = 11 * time.Second
		time.Sleep(10 * time.Second)

		if err := sealed.Check(ctx); err == nil {
			t.Error("renewed for a time that is over")
		}
	})
}

func TestProbeThatFindsARevokedKeyIsAudited(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, audit := &slow{Wrapper: w}, &trail{}
		k := newRing(t, s, time.Hour, func(c *keyring.Config) { c.Auditor, c.RevocationProbe = audit, 10*time.Second })
		defer run(t, k)()

		sealed, err := k.Create(asRequest(t), obj, "app", keyring.Choice{})
		must(t, err)
		defer sealed.Release()

		time.Sleep(25 * time.Second)
		audit.want(t, "create kms") // probes without a finding are not uses
		s.fail.Store(&kms.Error{Kind: kms.Disabled})
		time.Sleep(30 * time.Second)

		if e := audit.event(0); e.Purged != 1 || e.KeyName != "k" || e.KeyID != w.KeyID() {
			t.Errorf("%+v", e)
		}
		audit.want(t, "probe-revoked kms key disabled")
	})
}

// A DEK that was not handed out is wiped too.
func TestDEKsThatAreNotAuditedAreWiped(t *testing.T) {
	w, _ := newLocal(t)
	audit := &trail{}
	audit.full.Store(true)
	leaky := &keeping{Wrapper: w}
	k := newRing(t, leaky, time.Minute, withTrail(audit))
	if _, err := k.Create(asRequest(t), obj, "app", keyring.Choice{}); !errors.Is(err, keyring.ErrAudit) {
		t.Fatal(err)
	}

	if len(leaky.deks) != 1 || !bytes.Equal(leaky.deks[0], make([]byte, kms.DEKSize)) {
		t.Errorf("%x", leaky.deks)
	}
	if n := k.Status()[0].DEKs; n != 0 {
		t.Errorf("%d in the cache", n)
	}
}

// keeping keeps the slices that it was asked to wrap.
type keeping struct {
	kms.Wrapper
	deks [][]byte
}

func (l *keeping) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	l.deks = append(l.deks, dek)
	return l.Wrapper.Wrap(ctx, dek, ec)
}

// nobody is an auditor that accepts everything.
type nobody struct{}

func (nobody) Audit(context.Context, keyring.Event) error { return nil }

func BenchmarkOpenHitAudited(b *testing.B) {
	w, _ := newLocal(b)
	k := newRing(b, w, time.Minute, func(c *keyring.Config) { c.Auditor = nobody{} })
	sealed := create(b, k)
	b.ReportAllocs()

	for b.Loop() {
		l, err := k.Open(b.Context(), obj, sealed.KeyID, sealed.Wrapped)
		if err != nil {
			b.Fatal(err)
		}
		l.Release()
	}
}
