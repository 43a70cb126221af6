package kms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestAzureContract(t *testing.T) {
	server := kmstest.StartAzure(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { return server.NewKey(t, "RSA-2048", nil) }, nil)
}

func TestAzureContractOnManagedHSM(t *testing.T) {
	server := kmstest.StartAzure(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { return server.NewKey(t, "oct-HSM", nil) }, nil)
}

// The blobs of all keys fit in envelopes and part headers.
func TestAzureBlobSizes(t *testing.T) {
	server := kmstest.StartAzure(t)
	for kind, want := range map[string]int{"RSA-2048": 345, "RSA-3072": 473, "RSA-4096": 601, "oct-HSM": 129} {
		w := server.NewKey(t, kind, nil)
		dek, blob, err := kms.Generate(t.Context(), w, nil)
		must(t, err)

		if len(blob) != want {
			t.Errorf("%s: a blob of %d bytes, want %d", kind, len(blob), want)
		}

		wantDEK(t, kind, w, blob, nil, dek)
		obj := crypt.Object{Bucket: "b", Key: "k"}
		part := &crypt.Part{Number: 1, KeyID: w.KeyID(), WrappedDEK: blob}
		if _, err := crypt.NewPartSealer(bytes.NewReader(nil), part, obj, dek,
			bytes.NewReader(make([]byte, 64))); err != nil {
			t.Errorf("%s: %v", kind, err)
		}

		e := &crypt.Envelope{KeyID: w.KeyID(), WrappedDEK: blob}
		e.Header[0] = crypt.HeaderSize
		must(t, e.Sign(dek, obj))
		m, err := e.Metadata()
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}

		size := 0
		for name, value := range m {
			size += len(name) + len(value)
		}

		t.Logf("%s: an envelope of %d bytes", kind, size)
		if size > 1200 {
			t.Errorf("%s: an envelope of %d bytes leaves too little of S3's 2048", kind, size)
		}
	}
}

func TestAzureKeyStates(t *testing.T) {
	server := kmstest.StartAzure(t)
	w, ec := server.NewKey(t, "RSA-2048", nil), kmstest.Context("b", "k")
	if want := server.URL() + "/keys/key-1"; w.KeyID() != want {
		t.Errorf("key id %q, want %q", w.KeyID(), want)
	}

	dek, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	server.RotateKey(t, "key-1")
	dek2, blob2, err := kms.Generate(t.Context(), w, ec)
	must(t, err)
	wantDEK(t, "after a rotation", w, blob, ec, dek)
	wantDEK(t, "under the new version", w, blob2, ec, dek2)
	version, version2 := blob[11:27], blob2[11:27]
	if bytes.Equal(version, version2) {
		t.Errorf("version %x in both blobs", version)
	}

	forged := bytes.Clone(blob)
	copy(forged[11:], version2)
	_, err = w.Unwrap(t.Context(), forged, ec)
	wantKind(t, "another version", err, kms.InvalidCiphertext)
	copy(forged[11:], make([]byte, 16))
	_, err = w.Unwrap(t.Context(), forged, ec)
	wantKind(t, "an unknown version", err, kms.NotFound)
	mixed := append(bytes.Clone(blob[:len(blob)-60]), blob2[len(blob2)-60:]...)
	_, err = w.Unwrap(t.Context(), mixed, ec)
	wantKind(t, "halves of two blobs", err, kms.InvalidCiphertext)

	server.SetEnabled("key-1", 1, false)
	_, err = w.Unwrap(t.Context(), blob, ec)
	wantKind(t, "the old version disabled", err, kms.Disabled)

	if e, ok := errors.AsType[*kms.Error](err); !ok || e.Reason != "KeyDisabled" {
		t.Errorf("%v, want the reason KeyDisabled", err)
	}

	wantDEK(t, "the old version disabled, a blob of the new one", w, blob2, ec, dek2)
	server.SetEnabled("key-1", 1, true)
	wantDEK(t, "enabled again", w, blob, ec, dek)

	server.SetDeleted("key-1", true)
	wantAll(t, "deleted", w, blob, ec, kms.NotFound)
	server.SetDeleted("key-1", false)
	wantDEK(t, "recovered", w, blob, ec, dek)
	none := server.OpenKey(t, "none", func(c *kms.AzureConfig) { c.EnvelopeID = w.KeyID() })
	wantAll(t, "no such key", none, blob, ec, kms.NotFound)
	moved := server.OpenKey(t, "key-1", func(c *kms.AzureConfig) { c.EnvelopeID = "of-the-old-vault" })
	_, err = moved.Unwrap(t.Context(), blob, ec)

	wantKind(t, "the same key by another id", err, kms.InvalidCiphertext)
}

// A disabled RSA key may still wrap. If the result cannot be unwrapped, it
// must not be used.
func TestAzureWrapIsProven(t *testing.T) {
	t.Parallel()
	server := kmstest.StartAzure(t)
	w := server.NewKey(t, "RSA-2048", nil)
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	for range 5 {
		_, _, err := kms.Generate(t.Context(), w, nil)
		must(t, err)
	}

	if n := server.Calls()["unwrapkey"]; n != 1 {
		t.Errorf("%d unwraps for 6 wraps in a row, want 1", n)
	}

	server.SetEnabled("key-1", 1, false)
	_, err = w.Unwrap(t.Context(), blob, nil)
	wantKind(t, "disabled: unwrap", err, kms.Disabled)
	time.Sleep(5100 * time.Millisecond)
	_, _, err = kms.Generate(t.Context(), w, nil)
	wantKind(t, "disabled: wrap", err, kms.Disabled)
	server.SetEnabled("key-1", 1, true)

	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("enabled again: %v", err)
	}

	hsm := server.NewKey(t, "oct-HSM", nil)
	server.SetEnabled("key-2", 1, false)
	_, _, err = kms.Generate(t.Context(), hsm, nil)
	wantKind(t, "disabled symmetric key: wrap", err, kms.Disabled)
}

func TestAzureCodes(t *testing.T) {
	server := kmstest.StartAzure(t)
	w := server.NewKey(t, "oct-HSM", func(c *kms.AzureConfig) { c.Timeout = 300 * time.Millisecond })
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	for _, c := range []struct {
		name    string
		trouble kmstest.Trouble
		want    kms.Kind
	}{
		{"no role", kmstest.Trouble{Deny: true}, kms.Denied},
		{"no policy", kmstest.Trouble{Fail: 403, FailCode: "ForbiddenByPolicy"}, kms.Denied},
		{"firewall", kmstest.Trouble{Fail: 403, FailCode: "ForbiddenByFirewall"}, kms.Denied},
		{"operation taken from the key", kmstest.Trouble{Fail: 403, FailCode: "KeyOperationForbidden"}, kms.Denied},
		{"forbidden, no reason", kmstest.Trouble{Fail: 403}, kms.Denied},
		{"disabled", kmstest.Trouble{Fail: 403, FailCode: "KeyDisabled"}, kms.Disabled},
		{"being deleted", kmstest.Trouble{Fail: 409, FailCode: "ObjectIsBeingDeleted"}, kms.PendingDeletion},
		{"deleted", kmstest.Trouble{Fail: 409, FailCode: "ObjectIsDeletedButRecoverable"}, kms.PendingDeletion},
		{"being recovered", kmstest.Trouble{Fail: 409, FailCode: "ObjectIsBeingRecovered"}, kms.Unreachable},
		{"throttled", kmstest.Trouble{ThrottleNext: -1}, kms.Throttled},
		{"server error", kmstest.Trouble{Fail: 500}, kms.Unreachable},
		{"unavailable", kmstest.Trouble{Fail: 503}, kms.Unreachable},
		{"not implemented", kmstest.Trouble{Fail: 405}, kms.Invalid},
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

	server.SetTrouble(kmstest.Trouble{Fail: 400})
	_, err = w.Unwrap(t.Context(), blob, nil)
	wantKind(t, "bad parameter: unwrap", err, kms.InvalidCiphertext)
	_, err = w.Wrap(t.Context(), kmstest.NewDEK(), nil)
	wantKind(t, "bad parameter: wrap", err, kms.Invalid)

	server.SetTrouble(kmstest.Trouble{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = w.Unwrap(ctx, blob, nil)
	wantKind(t, "canceled in flight", err, kms.Canceled)
	server.Close()

	wantAll(t, "no listener", w, blob, nil, kms.Unreachable)
}

func TestAzureRetries(t *testing.T) {
	server := kmstest.StartAzure(t)
	w := server.NewKey(t, "oct-HSM", func(c *kms.AzureConfig) { c.MaxAttempts = 3; c.Timeout = 10 * time.Second })
	server.SetTrouble(kmstest.Trouble{ThrottleNext: 2})

	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("throttled twice, then served: %v", err)
	}
	if n := server.Calls()["wrapkey"]; n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}

	server.SetTrouble(kmstest.Trouble{Deny: true})
	_, _, err := kms.Generate(t.Context(), w, nil)
	if n := server.Calls()["wrapkey"]; !kms.IsRevoked(err) || n != 4 {
		t.Errorf("a refusal was tried %d times: %v", n-3, err)
	}
}

func TestAzureTokens(t *testing.T) {
	server := kmstest.StartAzure(t)
	w := server.NewKey(t, "oct-HSM", nil)
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	wantDEK(t, "the same token", w, blob, nil, dek)

	if n := server.Logins(); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}

	server.RevokeTokens()
	wantDEK(t, "after the token ended", w, blob, nil, dek)

	if n := server.Logins(); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}

	for name, c := range map[string]struct {
		err  error
		want kms.Kind
	}{
		"application deleted": {refusedLogin(400, entra("unauthorized_client", 700016)), kms.Denied},
		"secret has run out":  {refusedLogin(401, entra("invalid_client", 7000222)), kms.Denied},
		"a trouble of Entra":  {refusedLogin(400, entra("invalid_grant", 90033)), kms.Unreachable},
		"a clock that is off": {refusedLogin(401, entra("invalid_client", 700024)), kms.Unreachable},
		"Entra is down":       {refusedLogin(503, entra("temporarily_unavailable", 90033)), kms.Unreachable},
		"Entra throttles":     {refusedLogin(429, ""), kms.Unreachable},
		"a portal":            {refusedLogin(401, "<html>"), kms.Unreachable},
		"IMDS has no idea": {
			refusedLogin(400, `{"error":"invalid_request","error_description":"Identity not found"}`), kms.Unreachable,
		},
		"IMDS is silent": {
			azidentity.NewCredentialUnavailableError("managed identity timed out"), kms.Unreachable,
		},
		"no answer of Entra": {&azidentity.AuthenticationFailedError{}, kms.Unreachable},
		"no credentials":     {&azidentity.AuthenticationRequiredError{}, kms.Internal},
	} {
		server.SetLogin(c.err)
		server.RevokeTokens()
		wantAll(t, name, w, blob, nil, c.want)
	}

	server.SetLogin(nil)
	wantDEK(t, "logins work again", w, blob, nil, dek)

	// A server that is not the vault asks for a token for the vault, and
	// gets none.
	strict := server.OpenKey(t, "key-1",
		func(c *kms.AzureConfig) { c.AnyChallenge = false; c.Algorithm = kms.AzureA256KW })

	before := server.Logins()
	_, err = strict.Unwrap(t.Context(), blob, nil)
	wantKind(t, "a challenge of another domain", err, kms.Internal)

	if server.Logins() != before {
		t.Error("a token was got for a server that is not the vault")
	}
}

// refusedLogin returns the error for a response of a token endpoint.
func refusedLogin(status int, body string) error {
	return &azidentity.AuthenticationFailedError{RawResponse: &http.Response{
		StatusCode: status, Body: io.NopCloser(strings.NewReader(body)),
	}}
}

// entra returns an error document of Microsoft Entra.
func entra(name string, code int) string {
	return fmt.Sprintf(`{"error":%q,"error_description":"AADSTS%d: x","error_codes":[%d],"trace_id":"1-2"}`, name,
		code, code)
}

// An error of the machine's token endpoint says nothing about the key.
func TestAzureManagedIdentityImpostors(t *testing.T) {
	server := kmstest.StartAzure(t)
	w := server.NewKey(t, "oct-HSM", nil)
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	var answer kmstest.Impostor
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer.Answer(w) }))
	defer endpoint.Close()

	t.Setenv("IDENTITY_ENDPOINT", endpoint.URL)
	t.Setenv("IDENTITY_HEADER", "secret")

	for _, answer = range append(kmstest.Impostors, kmstest.Impostor{
		Name: "an App Service that moves", Status: 410, Type: "application/json",
		Body: `{"statusCode":410,"message":"gone"}`,
	}) {
		credential, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{
			ClientOptions: azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}},
		})

		must(t, err)
		byMachine := server.OpenKey(t, "key-1",
			func(c *kms.AzureConfig) { c.Credential, c.Algorithm = credential, kms.AzureA256KW })

		wantAll(t, answer.Name, byMachine, blob, nil, kms.Unreachable)
	}
}

func TestAzureConfigsThatAreRefused(t *testing.T) {
	const good = "https://My-Vault.vault.azure.net/keys/My-Key"
	for name, cfg := range map[string]kms.AzureConfig{
		"no key":          {},
		"a name":          {KeyID: "my-key"},
		"http":            {KeyID: strings.Replace(good, "https", "http", 1)},
		"a version":       {KeyID: good + "/" + strings.Repeat("0", 32)},
		"a secret":        {KeyID: strings.Replace(good, "/keys/", "/secrets/", 1)},
		"a query":         {KeyID: good + "?x=y"},
		"a password":      {KeyID: strings.Replace(good, "My-Vault", "u:p@My-Vault", 1)},
		"a bad name":      {KeyID: good + "_x"},
		"algorithm":       {KeyID: good, Algorithm: "RSA1_5"},
		"envelope id":     {KeyID: good, EnvelopeID: "two words"},
		"no room for RSA": {KeyID: good, EnvelopeID: strings.Repeat("x", 288)},
	} {
		_, err := kms.NewAzure(cfg)
		wantKind(t, name, err, kms.Invalid)
	}

	w, err := kms.NewAzure(kms.AzureConfig{KeyID: good})
	if want := strings.ToLower(good); err != nil || w.KeyID() != want {
		t.Errorf("a good one, with nothing listening: %v", err)
	}

	long := strings.Repeat("x", 287)
	if w, err := kms.NewAzure(kms.AzureConfig{KeyID: good, EnvelopeID: long}); err != nil || w.KeyID() != long {
		t.Errorf("the longest envelope id: %v", err)
	}
}

// Even if a broken or hostile server quotes requests and responses, errors
// must not contain a key: neither the DEK nor the KEK, which is all that
// the server sees.
func TestAzureErrorsHoldNoKeys(t *testing.T) {
	server := kmstest.StartAzure(t)
	dek := kmstest.NewDEK()
	sent := new(recorder)
	w := server.NewKey(t, "oct-HSM", func(c *kms.AzureConfig) { c.Transport = sent.through(server.Client()) })
	blob, err := w.Wrap(t.Context(), dek, nil)
	must(t, err)
	encoded := base64.RawURLEncoding.EncodeToString(dek)
	if bytes.Contains(sent.body, []byte(encoded)) || len(sent.body) == 0 {
		t.Error("the DEK was sent to the KMS, or nothing was")
	}

	kid := server.URL() + "/keys/key-1/" + hex.EncodeToString(blob[11:27])
	for name, trouble := range map[string]kmstest.Trouble{
		"broken answer": {Answer: `{"value":"` + encoded + `"`},
		"wrong type":    {Answer: `{"value":["` + encoded + `"]}`},
		"no base64":     {Answer: `{"value":"` + encoded + `!"}`},
		"another key":   {Answer: `{"value":"` + encoded + `","kid":"https://x/keys/y/z"}`},
		"no key":        {Answer: `{"value":"` + encoded + `"}`},
		"wrong size":    {Answer: `{"value":"` + encoded[:20] + `","kid":"` + kid + `"}`},
		"quoted":        {Fail: 400, FailText: "bad value " + encoded},
	} {
		server.SetTrouble(trouble)
		_, wrapErr := w.Wrap(t.Context(), dek, nil)
		errs := []error{wrapErr}

		if trouble.Fail == 0 { // only Wrap sends the KEK to the server
			got, unwrapErr := w.Unwrap(t.Context(), blob, nil)
			errs = append(errs, unwrapErr)
			if got != nil {
				t.Errorf("%s: a DEK came with the error", name)
			}
		}

		for _, err := range errs {
			wantNoKey(t, name, err, dek)
			if _, ok := errors.AsType[*azcore.ResponseError](err); ok {
				t.Errorf("%s: the SDK's error was kept", name)
			}
		}
	}

	server.SetTrouble(kmstest.Trouble{Answer: `{"value":"` + encoded + `","kid":"` + kid + `"}`})
	_, err = w.Unwrap(t.Context(), blob, nil)
	wantKind(t, "another key-encryption key", err, kms.InvalidCiphertext)
	kid = server.URL() + "/keys/key-1/" + strings.Repeat("0", 32)
	server.SetTrouble(kmstest.Trouble{Answer: `{"value":"` + encoded + `","kid":"` + kid + `"}`})
	_, err = w.Unwrap(t.Context(), blob, nil)

	wantKind(t, "an answer of another version", err, kms.Internal)
}

// recorder records the bodies of requests.
type recorder struct{ body []byte }

type recording struct {
	*recorder
	next *http.Client
}

func (r *recorder) through(next *http.Client) recording { return recording{r, next} }

// Do implements policy.Transporter.
func (r recording) Do(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		r.body = append(r.body, body...)
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r.next.Do(req)
}
