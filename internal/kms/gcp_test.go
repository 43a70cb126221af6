package kms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/api/option"
	"google.golang.org/grpc/codes"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

const gcpKey1 = "projects/test/locations/europe-west3/keyRings/ring/cryptoKeys/key-1"

func TestGCPContract(t *testing.T) {
	server := kmstest.StartGCP(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { return server.NewKey(t, nil) }, nil)
}

func TestGCPKeyStates(t *testing.T) {
	server := kmstest.StartGCP(t)
	w, ec := server.NewKey(t, nil), kmstest.Context("b", "k")
	if w.KeyID() != gcpKey1 {
		t.Errorf("key id %q", w.KeyID())
	}

	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	server.RotateKey(gcpKey1)
	dek2, blob2, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	wantDEK(t, "after a rotation", w, blob, ec, dek)
	wantDEK(t, "under the new version", w, blob2, ec, dek2)
	forged := append([]byte(nil), blob...)
	forged[6] = 2 // the version number
	_, err = w.Unwrap(t.Context(), forged, ec)
	wantKind(t, "another version", err, kms.InvalidCiphertext)

	server.SetState(gcpKey1, 1, kmspb.CryptoKeyVersion_DISABLED)
	_, err = w.Unwrap(t.Context(), blob, ec)
	wantKind(t, "the old version disabled", err, kms.Disabled)

	if e, ok := errors.AsType[*kms.Error](err); !ok || e.Reason != "KEY_DISABLED" {
		t.Errorf("%v, want the reason KEY_DISABLED", err)
	}

	wantDEK(t, "the old version disabled, a blob of the new one", w, blob2, ec, dek2)
	server.SetState(gcpKey1, 1, kmspb.CryptoKeyVersion_ENABLED)
	wantDEK(t, "enabled again", w, blob, ec, dek)

	for state, want := range map[kmspb.CryptoKeyVersion_CryptoKeyVersionState]kms.Kind{
		kmspb.CryptoKeyVersion_DISABLED:          kms.Disabled,
		kmspb.CryptoKeyVersion_DESTROY_SCHEDULED: kms.PendingDeletion,
		kmspb.CryptoKeyVersion_IMPORT_FAILED:     kms.Disabled,
	} {
		server.SetState(gcpKey1, 2, state)
		wantAll(t, state.String(), w, blob2, ec, want)
	}

	server.SetState(gcpKey1, 2, kmspb.CryptoKeyVersion_DESTROYED)
	wantAll(t, "destroyed", w, blob2, ec, kms.NotFound)

	wantAll(t, "no such key", server.OpenKey(t, strings.Replace(gcpKey1, "key-1", "none", 1), nil), blob2, ec,
		kms.NotFound)
}

func TestGCPCodes(t *testing.T) {
	server := kmstest.StartGCP(t)
	w := server.NewKey(t, func(c *kms.GCPConfig) { c.MaxAttempts = 1; c.Timeout = 300 * time.Millisecond })
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	fail := func(code codes.Code) kmstest.Trouble {
		return kmstest.Trouble{Fail: int(code), FailText: gcpKey1 + ": why"}
	}

	unnamed := func(code codes.Code) kmstest.Trouble { return kmstest.Trouble{Fail: int(code), FailText: "why"} }
	reason := func(code codes.Code, name string) kmstest.Trouble {
		return kmstest.Trouble{Fail: int(code), FailText: "why", FailReason: name}
	}

	violation := func(name string) kmstest.Trouble {
		return kmstest.Trouble{Fail: int(codes.FailedPrecondition), FailCode: name}
	}

	for _, c := range []struct {
		name    string
		trouble kmstest.Trouble
		want    kms.Kind
	}{
		{"denied", kmstest.Trouble{Deny: true}, kms.Denied},
		{"throttled", kmstest.Trouble{ThrottleNext: -1}, kms.Throttled},
		{"not found", fail(codes.NotFound), kms.NotFound},
		{"unavailable", fail(codes.Unavailable), kms.Unreachable},
		{"deadline", fail(codes.DeadlineExceeded), kms.Unreachable},
		{"aborted", fail(codes.Aborted), kms.Unreachable},
		{"canceled by the server", fail(codes.Canceled), kms.Unreachable},
		{"internal", fail(codes.Internal), kms.Unreachable},
		{"unimplemented", fail(codes.Unimplemented), kms.Invalid},
		{"unknown", fail(codes.Unknown), kms.Unreachable},
		{"a code to come", fail(codes.Code(99)), kms.Unreachable},
		{"not found, without evidence", unnamed(codes.NotFound), kms.Unreachable},
		{"denied, without evidence", unnamed(codes.PermissionDenied), kms.Unreachable},
		{"precondition, without evidence", unnamed(codes.FailedPrecondition), kms.Unreachable},
		{"unimplemented, without evidence", unnamed(codes.Unimplemented), kms.Unreachable},
		{"unauthenticated, without evidence", unnamed(codes.Unauthenticated), kms.Unreachable},
		{"another gRPC server", kmstest.Trouble{
			Fail:     int(codes.Unimplemented),
			FailText: "unknown service google.cloud.kms.v1.KeyManagementService",
		}, kms.Invalid},
		{"the API was switched off", reason(codes.PermissionDenied, "SERVICE_DISABLED"), kms.Denied},
		{"not found, with Google's details", reason(codes.NotFound, "RESOURCE_NOT_FOUND"), kms.NotFound},
		{"a token that has expired", reason(codes.Unauthenticated, "ACCESS_TOKEN_EXPIRED"), kms.Unreachable},
		{"an account that was deleted", reason(codes.Unauthenticated, "ACCOUNT_STATE_INVALID"), kms.Denied},
		{"unauthenticated", fail(codes.Unauthenticated), kms.Internal},
		{"precondition without details", fail(codes.FailedPrecondition), kms.Disabled},
		{"a state to come", violation("KEY_ON_HOLIDAY"), kms.Disabled},
		{"a precondition of something else", violation("EKM_UNREACHABLE"), kms.Unreachable},
		{"hang", kmstest.Trouble{Hang: true}, kms.Unreachable},
		{"drop", kmstest.Trouble{Drop: true}, kms.Unreachable},
	} {
		server.SetTrouble(c.trouble)
		start := time.Now()
		wantAll(t, c.name, w, blob, nil, c.want)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s: it took %v, with a timeout of 300 ms", c.name, d)
		}
	}

	server.SetTrouble(fail(codes.InvalidArgument))
	_, err = w.Unwrap(t.Context(), blob, nil)
	wantKind(t, "invalid argument: unwrap", err, kms.InvalidCiphertext)
	_, err = w.Wrap(t.Context(), kmstest.NewDEK(), nil)
	wantKind(t, "invalid argument: wrap", err, kms.Invalid)

	server.SetTrouble(kmstest.Trouble{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = w.Unwrap(ctx, blob, nil)
	wantKind(t, "canceled in flight", err, kms.Canceled)
	server.Close()

	wantAll(t, "no listener", w, blob, nil, kms.Unreachable)
}

func TestGCPRetries(t *testing.T) {
	server := kmstest.StartGCP(t)
	w := server.NewKey(t, func(c *kms.GCPConfig) { c.MaxAttempts = 3; c.Timeout = 10 * time.Second })
	server.SetTrouble(kmstest.Trouble{ThrottleNext: 2})

	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("throttled twice, then served: %v", err)
	}
	if n := server.Calls()["Encrypt"]; n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}

	server.SetTrouble(kmstest.Trouble{ThrottleNext: -1})
	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "throttled for ever", err, kms.Throttled)

	if n := server.Calls()["Encrypt"]; n != 6 {
		t.Errorf("%d attempts, want 3", n-3)
	}

	server.SetTrouble(kmstest.Trouble{Deny: true})
	_, _, err = kms.Generate(t.Context(), w, nil)
	if n := server.Calls()["Encrypt"]; !kms.IsRevoked(err) || n != 7 {
		t.Errorf("a refusal was tried %d times: %v", n-6, err)
	}
}

// Messages damaged in transit are requested again and never used.
func TestGCPChecksums(t *testing.T) {
	server := kmstest.StartGCP(t)
	w := server.NewKey(t, func(c *kms.GCPConfig) { c.MaxAttempts = 2 })
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	for _, c := range []struct {
		name         string
		damage       kmstest.GCPDamage
		wrap, unwrap bool // which operations it affects
		want         kms.Kind
	}{
		{"flags not set", kmstest.GCPDamage{Unverified: true}, true, false, kms.Unreachable},
		{"answer damaged", kmstest.GCPDamage{Answer: true}, true, true, kms.Unreachable},
		{"no checksum", kmstest.GCPDamage{NoSum: true}, true, true, kms.Unreachable},
		{"another key answered", kmstest.GCPDamage{OtherKey: true}, true, false, kms.Internal},
	} {
		server.SetDamage(c.damage)
		if c.wrap {
			_, err := w.Wrap(t.Context(), dek, nil)
			wantKind(t, c.name+": wrap", err, c.want)
		}
		if c.unwrap {
			got, err := w.Unwrap(t.Context(), blob, nil)
			wantKind(t, c.name+": unwrap", err, c.want)
			if got != nil {
				t.Errorf("%s: a DEK came with the error", c.name)
			}
		}

		if c.want == kms.Internal {
			continue // not repeated
		}

		c.damage.Next = 1
		server.SetDamage(c.damage)
		again, err := w.Wrap(t.Context(), dek, nil)
		must(t, err)
		server.SetDamage(c.damage)

		wantDEK(t, c.name+", once", w, again, nil, dek)
	}

	server.SetDamage(kmstest.GCPDamage{Request: true, Next: 1})
	if _, err := w.Wrap(t.Context(), dek, nil); err != nil {
		t.Errorf("request damaged once: wrap: %v", err)
	}

	server.SetDamage(kmstest.GCPDamage{Request: true, Next: 1})
	wantDEK(t, "request damaged once", w, blob, nil, dek)
	server.SetDamage(kmstest.GCPDamage{Request: true})
	before := server.Calls()["Decrypt"]

	if _, err := w.Unwrap(t.Context(), blob, nil); err == nil {
		t.Error("request damaged always: it was taken")
	}
	if n := server.Calls()["Decrypt"] - before; n != 2 {
		t.Errorf("request damaged always: %d attempts, want 2", n)
	}
}

func TestGCPConfigsThatAreRefused(t *testing.T) {
	for name, key := range map[string]string{
		"no key":        "",
		"a version":     gcpKey1 + "/cryptoKeyVersions/1",
		"a ring":        strings.TrimSuffix(gcpKey1, "/cryptoKeys/key-1"),
		"a URL":         "https://cloudkms.googleapis.com/v1/" + gcpKey1,
		"leading slash": "/" + gcpKey1,
		"two lines":     gcpKey1 + "\n",
		"a space":       strings.Replace(gcpKey1, "ring/", "my ring/", 1),
		"long name":     gcpKey1 + strings.Repeat("x", 63),
	} {
		_, err := kms.NewGCP(t.Context(), kms.GCPConfig{
			KeyID: key, Options: []option.ClientOption{option.WithoutAuthentication()},
		})
		wantKind(t, name, err, kms.Invalid)
	}

	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent")
	_, err := kms.NewGCP(t.Context(), kms.GCPConfig{KeyID: gcpKey1})
	wantKind(t, "no credentials", err, kms.Internal)
}

// serviceAccount returns a credentials file whose tokens are signed
// locally.
func serviceAccount(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)

	file, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "proxy@test.iam.gserviceaccount.com", "private_key_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"token_uri":   "https://127.0.0.1:1/",
	})

	must(t, err)
	return file
}

// If a token is not available, either the account was deleted or the
// network failed.
func TestGCPCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "adc.json")
	must(t, os.WriteFile(file, serviceAccount(t), 0o600))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	server := kmstest.StartGCP(t)
	w, err := kms.NewGCP(t.Context(), kms.GCPConfig{
		KeyID: gcpKey1, Endpoint: server.Endpoint(), Timeout: 500 * time.Millisecond, MaxAttempts: 1,
	})

	must(t, err)
	defer w.Close()

	_, _, err = kms.Generate(t.Context(), w, nil)
	wantKind(t, "default credentials over an unencrypted connection", err, kms.Unreachable)

	if server.Calls()["Encrypt"] != 0 {
		t.Error("a request with default credentials went over an unencrypted connection")
	}

	creds := func(err error) *auth.Credentials {
		return auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: tokenFunc(func() (*auth.Token, error) {
			return nil, err
		})})
	}

	for name, c := range map[string]struct {
		err  error
		want kms.Kind
	}{
		"refused": {
			&auth.Error{Response: &http.Response{StatusCode: 400}, Body: []byte(`{"error":"invalid_grant"}`)},
			kms.Denied,
		},
		"a portal": {
			&auth.Error{Response: &http.Response{StatusCode: 400}, Body: []byte("<html>")}, kms.Unreachable,
		},
		"no account": {
			errors.New(`credentials: status code 404: {"error":{"code":404,"status":"NOT_FOUND"}}`), kms.Denied,
		},
		"no metadata": {errors.New("metadata: GCE metadata \"token\" not defined"), kms.Unreachable},
		"not now":     {&auth.Error{Response: &http.Response{StatusCode: 503}}, kms.Unreachable},
		"too many":    {&auth.Error{Response: &http.Response{StatusCode: 429}}, kms.Unreachable},
		"no answer":   {context.DeadlineExceeded, kms.Unreachable},
		"no idea why": {errors.New("x"), kms.Unreachable},
		"no file":     {fmt.Errorf("x: %w", os.ErrNotExist), kms.Internal},
	} {
		w, err := kms.NewGCPWithCredentials(t.Context(), kms.GCPConfig{
			KeyID: gcpKey1, Endpoint: server.Endpoint(), Options: kmstest.GCPOptions(), MaxAttempts: 1,
		}, creds(c.err))

		must(t, err)
		server.SetTrouble(kmstest.Trouble{Fail: int(codes.Unauthenticated)})
		_, _, err = kms.Generate(t.Context(), w, nil)
		wantKind(t, name, err, c.want)
		must(t, w.Close())
	}
}

type tokenFunc func() (*auth.Token, error)

func (f tokenFunc) Token(context.Context) (*auth.Token, error) { return f() }

// Even if a broken or hostile server quotes requests and responses, errors
// must not contain a DEK.
func TestGCPErrorsHoldNoKeys(t *testing.T) {
	server := kmstest.StartGCP(t)
	w := server.NewKey(t, nil)
	dek := kmstest.NewDEK()

	for _, code := range []codes.Code{codes.InvalidArgument, codes.Internal, codes.FailedPrecondition, codes.Unknown} {
		server.SetTrouble(kmstest.Trouble{Fail: int(code), FailText: "bad: " + base64.StdEncoding.EncodeToString(dek)})
		_, err := w.Wrap(t.Context(), dek, nil)
		wantNoKey(t, code.String(), err, dek)
	}

	server.SetTrouble(kmstest.Trouble{})
	blob, err := w.Wrap(t.Context(), dek, nil)
	must(t, err)
	server.SetDamage(kmstest.GCPDamage{Answer: true})
	_, err = w.Unwrap(t.Context(), blob, nil)

	wantNoKey(t, "damaged answer", err, dek)
}

// Debug logging of the client would print data keys.
func TestGCPLogsNothing(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	log, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	must(t, err)
	defer log.Close()

	stderr := os.Stderr
	os.Stderr = log
	defer func() { os.Stderr = stderr }()

	server := kmstest.StartGCP(t)
	w := server.NewKey(t, nil)
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	wantDEK(t, "as ever", w, blob, nil, dek)
	written, err := os.ReadFile(log.Name())
	must(t, err)

	if len(written) > 0 {
		t.Errorf("%d bytes on standard error, the DEK among them: %v", len(written),
			strings.Contains(string(written), base64.StdEncoding.EncodeToString(dek)))
	}
}

// A service account key that is replaced in its file is used at once.
func TestGCPRotatedCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "adc.json")
	rotate := func(email string) {
		must(t, os.WriteFile(file, bytes.ReplaceAll(serviceAccount(t), []byte("proxy@test"), []byte(email)), 0o600))
	}

	rotate("one@test")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	issuers := make(chan string, 1000)
	server := kmstest.StartGCP(t)
	server.OnToken(func(token string) {
		parts := strings.Split(token, ".")
		claims, err := base64.RawURLEncoding.DecodeString(parts[len(parts)/2])
		if err == nil {
			issuers <- string(claims)
		}
	})

	ca := filepath.Join(t.TempDir(), "ca")
	_, authority := certificate(t)
	must(t, os.WriteFile(ca, authority, 0o600))

	w := server.NewKey(t, func(c *kms.GCPConfig) {
		c.Options, c.Endpoint, c.CAFile = nil, terminateTLS(t, server.Endpoint()), ca
	})

	for _, email := range []string{"one@test", "two@test"} {
		rotate(email)
		found := false
		for end := time.Now().Add(10 * time.Second); !found &&
			time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
				t.Fatal(err)
			}
			found = strings.Contains(<-issuers, `"`+email)
		}

		if !found {
			t.Errorf("the credentials of %s are never used", email)
		}
	}
}
