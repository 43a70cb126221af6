package kmstest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

const signature = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/kms/aws4_request, " +
	"SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature="

type client struct {
	t       *testing.T
	server  *kmstest.Server
	headers map[string]string
}

func newClient(t *testing.T, s *kmstest.Server) *client {
	t.Helper()
	return &client{t, s, map[string]string{
		"Content-Type":  "application/x-amz-json-1.1",
		"X-Amz-Date":    "20260102T030405Z",
		"Authorization": signature + strings.Repeat("0a", 32),
	}}
}

// call returns the error name, or "", and the response.
func (c *client) call(operation, body string) (string, map[string]any) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.server.URL()+"/", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}

	r.Header.Set("X-Amz-Target", "TrentService."+operation)
	for name, value := range c.headers {
		r.Header.Set(name, value)
	}

	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()

	data, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}

	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil && len(data) > 0 {
		c.t.Fatalf("%s: %q", operation, data)
	}

	name, _ := out["__type"].(string)
	if (resp.StatusCode == http.StatusOK) != (name == "") || resp.Header.Get("X-Amzn-Errortype") != name {
		c.t.Errorf("%s: status %d with error %q", operation, resp.StatusCode, name)
	}

	return name, out
}

func (c *client) want(name, operation, body string) map[string]any {
	c.t.Helper()
	got, out := c.call(operation, body)
	if got != name {
		c.t.Errorf("%s %.200s: %q, want %q", operation, body, got, name)
	}
	return out
}

func TestUnsignedRequests(t *testing.T) {
	c := newClient(t, kmstest.StartTest(t))
	c.want("", "CreateKey", `{}`)
	good := c.headers["Authorization"]
	for header, want := range map[string]string{
		"":                 "MissingAuthenticationTokenException",
		"Bearer x":         "IncompleteSignatureException",
		good[:len(good)-1]: "IncompleteSignatureException",
		strings.Replace(good, "/kms/", "/s3/", 1):               "InvalidSignatureException",
		strings.Replace(good, "us-east-1", "eu-central-1", 1):   "InvalidSignatureException",
		strings.Replace(good, "x-amz-date;", "", 1):             "InvalidSignatureException",
		strings.Replace(good, ";x-amz-target", "", 1):           "InvalidSignatureException",
		strings.Replace(good, "/20260102/", "/20260103/", 1):    "InvalidSignatureException",
		strings.Replace(good, "AWS4-HMAC-SHA256", "AWS4-X", 1):  "IncompleteSignatureException",
		strings.Replace(good, "aws4_request", "aws4request", 1): "IncompleteSignatureException",
	} {
		c.headers["Authorization"] = header
		c.want(want, "CreateKey", `{}`)
	}
}

func TestStrictness(t *testing.T) {
	server := kmstest.StartTest(t)
	c := newClient(t, server)
	arn, err := server.CreateKey()
	must(t, err)
	key := `"KeyId":"` + arn + `"`
	big := strings.Repeat("x", 8200)
	for _, row := range []struct{ want, operation, body string }{
		{"UnknownOperationException", "DeleteEverything", `{}`},
		{"UnknownOperationException", "", `{}`},
		{"SerializationException", "GenerateDataKey", `{`},
		{"SerializationException", "GenerateDataKey", ``},
		{"SerializationException", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_256"} x`},
		{"SerializationException", "GenerateDataKey", `{` + key + `,"KeySpec":256}`},
		{"SerializationException", "Encrypt", `{` + key + `,"Plaintext":"not base64!"}`},
		{"SerializationException", "Encrypt", `{` + key + `,"Plaintext":"AAAA","EncryptionContext":{"a":1}}`},
		{"ValidationException", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_256","Colour":"red"}`},
		{"ValidationException", "GenerateDataKey", `{` + key + `}`},
		{"ValidationException", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_256","NumberOfBytes":32}`},
		{"ValidationException", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_512"}`},
		{"ValidationException", "GenerateDataKey", `{` + key + `,"NumberOfBytes":1025}`},
		{"ValidationException", "Encrypt", `{` + key + `,"Plaintext":""}`},
		{"ValidationException", "Encrypt", `{` + key + `,"Plaintext":"` + strings.Repeat("AAAA", 1366) + `"}`},
		{"", "Encrypt", `{` + key + `,"Plaintext":"` + strings.Repeat("AAAA", 1365) + `"}`},
		{"ValidationException", "Encrypt", `{` + key + `,"Plaintext":"AAAA","EncryptionContext":{"a":"` + big + `"}}`},
		{"ValidationException", "Encrypt", `{` + key + `,"Plaintext":"AAAA","EncryptionContext":{"":"a"}}`},
		{"InvalidKeyUsageException", "Encrypt", `{` + key +
			`,"Plaintext":"AAAA","EncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`},
		{"ValidationException", "Decrypt", `{` + key + `,"CiphertextBlob":""}`},
		{"InvalidCiphertextException", "Decrypt", `{` + key + `,"CiphertextBlob":"AAAA"}`},
		{"NotFoundException", "DescribeKey", `{"KeyId":"alias/none"}`},
		{"NotFoundException", "DescribeKey", `{"KeyId":"` + strings.Replace(arn, "us-east-1", "us-west-2", 1) + `"}`},
		{"NotFoundException", "DescribeKey", `{"KeyId":"1234abcd-12ab-34cd-56ef-1234567890ab"}`},
		{"UnsupportedOperationException", "CreateKey", `{"KeySpec":"RSA_2048"}`},
		{"InvalidAliasNameException", "CreateAlias", `{"AliasName":"alias/aws/x","TargetKeyId":"` + arn + `"}`},
		{"InvalidAliasNameException", "CreateAlias", `{"AliasName":"x","TargetKeyId":"` + arn + `"}`},
		{"", "CreateAlias", `{"AliasName":"alias/x","TargetKeyId":"` + arn + `"}`},
		{"AlreadyExistsException", "CreateAlias", `{"AliasName":"alias/x","TargetKeyId":"` + arn + `"}`},
		{"", "GenerateDataKey", `{"KeyId":"alias/x","KeySpec":"AES_256"}`},
		{"NotFoundException", "DisableKey", `{"KeyId":"alias/x"}`},
		{"ValidationException", "ScheduleKeyDeletion", `{` + key + `,"PendingWindowInDays":6}`},
		{"KMSInvalidStateException", "CancelKeyDeletion", `{` + key + `}`},
		{"", "ScheduleKeyDeletion", `{` + key + `,"PendingWindowInDays":7}`},
		{"KMSInvalidStateException", "EnableKey", `{` + key + `}`},
		{"KMSInvalidStateException", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_256"}`},
		{"", "CancelKeyDeletion", `{` + key + `}`},
		{"DisabledException", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_256"}`},
		{"", "EnableKey", `{` + key + `}`},
		{"", "GenerateDataKey", `{` + key + `,"KeySpec":"AES_256"}`},
	} {
		c.want(row.want, row.operation, row.body)
	}
}

func TestReEncrypt(t *testing.T) {
	server := kmstest.StartTest(t)
	c, a, b := newClient(t, server), server.NewKey(t, nil), server.NewKey(t, nil)
	out := c.want("", "Encrypt", `{"KeyId":"`+a.KeyID()+`","Plaintext":"c2VjcmV0","EncryptionContext":{"a":"1"}}`)
	body := func(ec string) string {
		return `{"CiphertextBlob":"` + out["CiphertextBlob"].(string) + `","SourceEncryptionContext":` + ec +
			`,"DestinationKeyId":"` + b.KeyID() + `","DestinationEncryptionContext":{"b":"2"}}`
	}

	c.want("InvalidCiphertextException", "ReEncrypt", body(`{"a":"2"}`))
	out = c.want("", "ReEncrypt", body(`{"a":"1"}`))
	decrypt := `{"CiphertextBlob":"` + out["CiphertextBlob"].(string) + `","EncryptionContext":{"b":"2"}`
	out = c.want("", "Decrypt", decrypt+`}`) // without a KeyId: the blob names the key
	if out["KeyId"] != b.KeyID() || out["Plaintext"] != "c2VjcmV0" {
		t.Errorf("%v", out)
	}

	c.want("IncorrectKeyException", "Decrypt", decrypt+`,"KeyId":"`+a.KeyID()+`"}`)
	must(t, server.DestroyKey(b.KeyID()))
	c.want("AccessDeniedException", "Decrypt", decrypt+`}`)
}

func TestStateSurvivesARestart(t *testing.T) {
	now := time.Now()
	cfg := kmstest.Config{StateFile: filepath.Join(t.TempDir(), "state"), Now: func() time.Time { return now }}
	first, err := kmstest.Start(cfg)
	must(t, err)
	w := first.NewKey(t, nil)
	dek, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	must(t, first.SetAlias("alias/x", w.KeyID()))
	must(t, first.Close())

	second, err := kmstest.Start(cfg)
	must(t, err)
	defer second.Close()

	w = second.OpenKey(t, "alias/x", nil)
	if got, err := kms.Unwrap(t.Context(), w, blob, nil); err != nil || !bytes.Equal(got, dek) {
		t.Errorf("after a restart: %v", err)
	}

	must(t, second.ScheduleKeyDeletion(w.KeyID()))
	now = now.Add(7 * 24 * time.Hour)
	newClient(t, second).want("NotFoundException", "DescribeKey", `{"KeyId":"`+w.KeyID()+`"}`)
}

func TestControl(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)

	control := func(body string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL()+"/_control",
			strings.NewReader(body))
		must(t, err)
		resp, err := http.DefaultClient.Do(r)
		must(t, err)
		defer resp.Body.Close()

		return resp.StatusCode
	}
	if status := control(`{"faults":{"throttle_next":1}}`); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}

	if _, _, err := kms.Generate(t.Context(), w, nil); !kms.IsThrottled(err) {
		t.Errorf("%v, want throttled", err)
	}
	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("the next one: %v", err)
	}

	if status := control(`{"faults":{"colour":"red"}}`); status != http.StatusBadRequest {
		t.Errorf("an unknown fault: status %d", status)
	}
	if status := control(`{"faults":{"hang":true,"operations":["decrypt"]}}`); status != http.StatusBadRequest {
		t.Errorf("a fault of an unknown operation: status %d", status)
	}

	control(`{"faults":{"max_per_second":1}}`)
	throttled := 0

	for range 5 {
		if _, _, err := kms.Generate(t.Context(), w, nil); kms.IsThrottled(err) {
			throttled++
		}
	}

	if throttled < 3 {
		t.Errorf("%d of 5 throttled at one a second", throttled)
	}

	control(`{"faults":{"fail":"KMSInternalException","fail_next":1,"latency_ms":50}}`)
	start := time.Now()
	if _, _, err := kms.Generate(t.Context(), w, nil); !kms.IsUnreachable(err) ||
		time.Since(start) < 50*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}

	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("after one failure: %v", err)
	}

	resp, err := http.Get(server.URL() + "/_control")
	must(t, err)
	defer resp.Body.Close()

	var state struct{ Calls map[string]int }
	must(t, json.NewDecoder(resp.Body).Decode(&state))

	if state.Calls["GenerateDataKey"] != 9 {
		t.Errorf("calls %v", state.Calls)
	}
}

func TestFaultsOfDecryptAlone(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)
	only := []string{"Decrypt"}
	for name, c := range map[string]struct {
		faults kmstest.Faults
		want   kms.Kind
	}{
		"hang":     {kmstest.Faults{Operations: only, Hang: true}, kms.Unreachable},
		"drop":     {kmstest.Faults{Operations: only, Drop: true}, kms.Unreachable},
		"throttle": {kmstest.Faults{Operations: only, ThrottleNext: 1}, kms.Throttled},
		"deny":     {kmstest.Faults{Operations: only, Deny: true}, kms.Denied},
		"fail":     {kmstest.Faults{Operations: only, Fail: "KMSInternalException"}, kms.Unreachable},
	} {
		server.SetFaults(c.faults)
		if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
			t.Errorf("%s: GenerateDataKey: %v", name, err)
		}

		_, err := w.Unwrap(t.Context(), blob, nil)
		if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != c.want {
			t.Errorf("%s: Decrypt: %v, want %v", name, err, c.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
