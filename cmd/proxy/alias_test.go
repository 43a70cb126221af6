package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// awsKey is a key with an alias, on a test server.
type awsKey struct {
	*kmstest.Server
	config.Key
	old, next string // ARNs
}

func newAWSKey(t *testing.T) *awsKey {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", kmstest.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	k := &awsKey{Server: kmstest.StartTest(t)}
	k.old, k.next = k.NewKey(t, nil).KeyID(), k.NewKey(t, nil).KeyID()
	k.Key = config.Key{
		Name: "app", Provider: config.AWSKMS, KeyID: "alias/app", Region: k.Server.Region(), Endpoint: k.URL(),
		Timeout: 5 * time.Second,
	}
	k.point(t, k.old)
	return k
}

func (k *awsKey) point(t *testing.T, arn string) {
	t.Helper()
	if err := k.SetAlias("alias/app", arn); err != nil {
		t.Fatal(err)
	}
}

// buildRing returns a proxy's keyring with these keys. The rule names the
// first.
func buildRing(t *testing.T, keys ...config.Key) (*backend, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	a := &backend{log: zap.New(core), metrics: metrics.New(), cfg: &config.Config{
		Keys: keys, KMS: config.KMS{MaxConcurrent: 10, MaxPerSecond: 1000},
		DEKCache:   config.DEKCache{TTL: 5 * time.Minute, MaxEntries: 10, RevocationProbe: 10 * time.Second},
		Encryption: config.Encryption{Rules: []config.Rule{{Buckets: []string{"*"}, Key: keys[0].Name}}},
	}}
	if err := a.openKeyring(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.cache.Close)
	return a, logs
}

// Objects that were stored before and after an alias moved can be read, with
// an unchanged configuration.
func TestAlsoKnownAs(t *testing.T) {
	k := newAWSKey(t)
	k.AlsoKnownAs = []string{k.old, k.next}
	obj := keyring.Object{Bucket: "b", Key: "k"}

	var sealed []*keyring.DataKey
	for _, target := range []string{k.old, k.next, k.old} { // moved, and moved back
		k.point(t, target)
		a, _ := buildRing(t, k.Key)
		s, err := a.keys.Create(t.Context(), obj, "", keyring.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		s.Release()

		if s.KeyID != target {
			t.Errorf("sealed under %s, want %s", s.KeyID, target)
		}

		sealed = append(sealed, s)
		for _, s := range sealed {
			l, err := a.keys.Open(t.Context(), obj, s.KeyID, s.Wrapped)
			if err != nil {
				t.Errorf("with the alias at %s: %v", target, err)
				continue
			}
			l.Release()
		}
	}

	for _, s := range sealed[:2] {
		k.AlsoKnownAs = nil
		a, _ := buildRing(t, k.Key)
		_, err := a.keys.Open(t.Context(), obj, s.KeyID, s.Wrapped)
		if (err != nil) != (s.KeyID == k.next) {
			t.Errorf("without also_known_as, %s: %v", s.KeyID, err)
		}
	}
}

func TestTwinsAreToldOf(t *testing.T) {
	k := newAWSKey(t)
	again := k.Key
	again.Name, again.KeyID = "again", k.old
	_, logs := buildRing(t, k.Key, again)
	if n := logs.FilterMessageSnippet("two configured keys are the same KMS key").Len(); n != 1 {
		t.Errorf("%d warnings, want 1: %v", n, logs.All())
	}
}

func TestMovedAliasIsNoticed(t *testing.T) {
	k := newAWSKey(t)
	a, logs := buildRing(t, k.Key)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})

	go func() {
		defer close(done)
		a.watchAlias(ctx, k.Key, a.held["app"].raw, 10*time.Millisecond)
	}()

	wait := func(text string) {
		t.Helper()
		for range 500 {
			if found := logs.FilterMessageSnippet(text); found.Len() > 0 {
				if now := found.All()[0].ContextMap()["in_use"]; now != k.old {
					t.Errorf("%q is in use, want %q", now, k.old)
				}
				return
			}
			time.Sleep(20 * time.Millisecond)
		}

		t.Errorf("never logged: %s", text)
	}

	k.point(t, k.next)
	wait("also_known_as")
	k.point(t, k.old)
	wait("key in use again")
	cancel()
	<-done

	if n := logs.FilterMessageSnippet("the alias").Len(); n != 2 {
		t.Errorf("%d messages for two moves", n)
	}
}

// check reports what will break.
func TestCheckTellsOfAliases(t *testing.T) {
	k := newAWSKey(t)
	check := func(change func(*config.Key)) (string, error) {
		key := k.Key
		change(&key)
		return checkKey(t.Context(), key)
	}

	for _, c := range []struct {
		name   string
		change func(*config.Key)
		want   string // text in the detail
		fails  string
	}{
		{"a key by its ARN", func(c *config.Key) { c.KeyID = k.old }, k.old, ""},
		{"a key by its id", func(c *config.Key) { c.KeyID = k.old[strings.LastIndexByte(k.old, '/')+1:] }, k.old, ""},
		{
			"an alias by its ARN", func(c *config.Key) { c.KeyID = k.old[:strings.Index(k.old, "key/")] + "alias/app" },
			"in also_known_as", "",
		},
		{"an alias alone", func(*config.Key) {}, "put " + k.old + " in also_known_as", ""},
		{"an alias and both keys", func(c *config.Key) { c.AlsoKnownAs = []string{k.old, k.next} }, k.old, ""},
		{
			"an alias at an unknown key", func(c *config.Key) { c.AlsoKnownAs = []string{k.next} }, "",
			"which is not in also_known_as",
		},
		{
			"a key that is not there", func(c *config.Key) { c.AlsoKnownAs = []string{k.old, k.old[:len(k.old)-1] + "x"} }, "",
			"cannot be read",
		},
	} {
		detail, err := check(c.change)
		if !strings.Contains(detail, c.want) || (err == nil) != (c.fails == "") ||
			err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %q, %v", c.name, detail, err)
		}
		if c.want == k.old && detail != k.old {
			t.Errorf("%s: more than the ARN: %q", c.name, detail)
		}
	}

	both := func(c *config.Key) { c.AlsoKnownAs = []string{k.old, k.next} }
	if err := k.DisableKey(k.next); err != nil {
		t.Fatal(err)
	}
	if _, err := check(both); !kms.IsRevoked(err) {
		t.Errorf("an earlier key that is disabled: %v", err)
	}

	k.SetFaults(kmstest.Faults{Operations: []string{"DescribeKey"}, Deny: true})
	detail, err := check(func(c *config.Key) { c.KeyID, c.AlsoKnownAs = k.old, []string{k.next} })
	if err != nil || !strings.Contains(detail, "cannot check") {
		t.Errorf("without the right to describe: %q, %v", detail, err)
	}
}
