package s3api_test

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// withKMS moves the proxy's key to a KMS that uses the API of AWS.
func withKMS(server *kmstest.Server, arn string) option {
	return func(p *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Keys[0].Wrapper = server.OpenKey(p.t, arn, func(c *kms.AWSConfig) { c.Timeout = 2 * time.Second })
	}
}

// Errors of the KMS are returned as S3 returns them: a 4xx for a revoked
// key, and a 503, which SDKs retry, if the KMS cannot answer. Nothing is
// stored, and no plaintext is returned.
func TestKMSFaults(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, withKMS(server, arn))
	text := randomText(1000)

	p.put("k", text)
	fault := func(f kmstest.Faults) func() error { return func() error { server.SetFaults(f); return nil } }
	impostor := func(status int) func() error {
		answer := &kmstest.Impostor{Status: status, Type: "text/html", Body: "<html>"}
		if status == 0 {
			answer = nil
		}
		return func() error { server.SetImpostor(answer); return nil }
	}
	for _, row := range []struct {
		name       string
		take, give func() error
		status     int
		code       string
	}{
		{
			"disabled", func() error { return server.DisableKey(arn) }, func() error { return server.EnableKey(arn) }, 400,
			"KMS.DisabledException",
		},
		{"denied", fault(kmstest.Faults{Deny: true}), fault(kmstest.Faults{}), 403, "AccessDenied"},
		{"throttled", fault(kmstest.Faults{ThrottleNext: 100}), fault(kmstest.Faults{}), 503, "SlowDown"},
		{"hanging", fault(kmstest.Faults{Hang: true}), fault(kmstest.Faults{}), 503, "ServiceUnavailable"},
		{"dropping connections", fault(kmstest.Faults{Drop: true}), fault(kmstest.Faults{}), 503, "ServiceUnavailable"},
		{"behind a firewall", impostor(403), impostor(0), 503, "ServiceUnavailable"},
		{"behind a balancer without it", impostor(404), impostor(0), 503, "ServiceUnavailable"},
		{"behind a login page", impostor(200), impostor(0), 503, "ServiceUnavailable"},
		{
			"with expired credentials", fault(kmstest.Faults{Fail: "ExpiredTokenException"}), fault(kmstest.Faults{}), 503,
			"ServiceUnavailable",
		},
		{
			"with a wrong clock", fault(kmstest.Faults{Skew: "Signature expired: x"}), fault(kmstest.Faults{}), 503,
			"ServiceUnavailable",
		},
		{"failing", fault(kmstest.Faults{Fail: "KMSInternalException"}), fault(kmstest.Faults{}), 503, "ServiceUnavailable"},
		{"pending deletion", func() error { return server.ScheduleKeyDeletion(arn) }, func() error {
			if err := server.CancelKeyDeletion(arn); err != nil {
				return err
			}
			return server.EnableKey(arn)
		}, 400, "KMS.KMSInvalidStateException"},
		{"destroyed", func() error { return server.DestroyKey(arn) }, nil, 400, "KMS.NotFoundException"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := row.take(); err != nil {
				t.Fatal(row.name, err)
			}
			p.keys.PurgeAll()
			get := p.send(request{method: "GET", path: "/" + p.bucket + "/k"})

			put := p.send(request{method: "PUT", path: "/" + p.bucket + "/new", body: text})
			for _, a := range []answer{get, put} {
				if a.StatusCode != row.status || a.Code != row.code || bytes.Contains(a.body, text[:16]) {
					t.Errorf(
						"%s answered %d %s, want %d %s",
						a.Request.Method,
						a.StatusCode,
						a.Code,
						row.status,
						row.code,
					)
				}

				if (a.StatusCode == http.StatusServiceUnavailable) != (a.Header.Get("Retry-After") != "") {
					t.Errorf("Retry-After %q with %d", a.Header.Get("Retry-After"), a.StatusCode)
				}
			}

			if p.isStored("new") {
				t.Errorf("stored all the same")
			}
			if row.give == nil {
				return
			}

			if err := row.give(); err != nil {
				t.Fatal(row.name, err)
			}
			if got := p.mustGet("k"); !bytes.Equal(got, text) {
				t.Errorf("does not recover")
			}
		})
	}
}

// Objects under a key that could not be opened at the start are available
// later, so clients get a 503.
func TestUnopenedKMSKey(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, withKMS(server, arn))
	text := randomText(100)

	p.put("k", text)

	for _, row := range []struct {
		kind   kms.Kind
		status int // status of a PUT
	}{{kms.Unreachable, 503}, {kms.Throttled, 503}, {kms.Internal, 503}, {kms.Denied, 403}, {kms.NotFound, 400}} {
		t.Run(row.kind.String(), func(t *testing.T) {
			q := newProxy(t, func(_ *proxy, _ *s3api.Config, c *keyring.Config) {
				c.Keys[0].Wrapper, c.Keys[0].Unavailable = nil, &kms.Error{Kind: row.kind, Op: "open", KeyID: "alias/a"}
			})
			get := q.send(request{method: "GET", path: "/" + p.bucket + "/k"})
			if get.StatusCode != 503 || get.Header.Get("Retry-After") == "" {
				t.Errorf("%v: GET answered %d %s, want 503", row.kind, get.StatusCode, get.Code)
			}

			put := q.send(request{method: "PUT", path: "/" + p.bucket + "/new", body: text})
			if put.StatusCode != row.status {
				t.Errorf("%v: PUT answered %d %s, want %d", row.kind, put.StatusCode, put.Code, row.status)
			}
		})
	}
}

// Another key of the same KMS opens nothing: a proxy with only that key does
// not even ask.
func TestAnotherKMSKeyOpensNothing(t *testing.T) {
	server := kmstest.StartTest(t)
	mine, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}

	other, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, withKMS(server, mine))
	p.put("k", randomText(100))
	body, meta := p.stored("k")

	q := newProxy(t, withKMS(server, other))
	q.bucket = p.bucket
	mustRefuse(t, q, "another key", "k", nil, "KMS.NotFoundException")
	meta.Set("X-Amz-Meta-Cmek-Key", other) // an envelope that claims to be under the other key
	q.store("k", body, meta)
	mustRefuse(t, q, "an envelope that names another key", "k", nil, "ObjectIntegrityError")
}

// A GET after a PUT, and further GETs, need no KMS request. HEAD and
// listings never do.
func TestKMSRequests(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, withKMS(server, arn))
	p.put("k", randomText(100))

	for range 3 {
		p.mustGet("k")
		p.send(request{method: "HEAD", path: "/" + p.bucket + "/k"})
		p.send(request{method: "GET", path: "/" + p.bucket + "?list-type=2"})
	}

	if calls := server.Calls(); calls["GenerateDataKey"] != 1 || calls["Decrypt"] != 0 {
		t.Errorf("%v", calls)
	}
	p.keys.PurgeAll()
	p.send(request{method: "HEAD", path: "/" + p.bucket + "/k"})

	if n := server.Calls()["Decrypt"]; n != 0 {
		t.Errorf("a HEAD cost %d Decrypt", n)
	}
	p.mustGet("k")
	p.mustGet("k")

	if n := server.Calls()["Decrypt"]; n != 1 {
		t.Errorf("two GETs cost %d Decrypt", n)
	}
}
