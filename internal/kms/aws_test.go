package kms_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestAWSContract(t *testing.T) {
	server := kmstest.StartTest(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { return server.NewKey(t, nil) }, nil)
}

// Tests the contract against an independent implementation.
func TestAWSContractOnMoto(t *testing.T) {
	endpoint := startMoto(t)
	static := credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "example", "")
	client := awskms.New(awskms.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: static})
	newKey := func(t *testing.T) kms.Wrapper {
		key, err := client.CreateKey(t.Context(), &awskms.CreateKeyInput{})
		if err != nil {
			t.Fatal(err)
		}

		w, err := kms.NewAWS(t.Context(), kms.AWSConfig{
			KeyID: aws.ToString(key.KeyMetadata.Arn), Endpoint: endpoint, Credentials: static,
		})
		if err != nil {
			t.Fatal(err)
		}

		return w
	}

	kmstest.RunContract(t, newKey, motoGaps)

	a, b := newKey(t), newKey(t)
	blob, err := a.Wrap(t.Context(), kmstest.NewDEK(), nil)
	must(t, err)

	if _, err := b.Unwrap(t.Context(), blob, nil); err == nil {
		t.Error("another key unwrapped it")
	}

	id := a.KeyID()[strings.LastIndexByte(a.KeyID(), '/')+1:] // moto fails on ARNs here
	_, err = client.DisableKey(t.Context(), &awskms.DisableKeyInput{KeyId: &id})
	must(t, err)

	if _, err := a.Unwrap(t.Context(), blob, nil); err != nil && !kms.IsRevoked(err) {
		t.Errorf("disabled: %v", err)
	} else if err == nil {
		t.Log("moto decrypts with a disabled key")
	}
}

// motoGaps are moto's differences from AWS: it returns
// AccessDeniedException instead of IncorrectKeyException or
// InvalidCiphertextException. It does refuse.
var motoGaps = map[string]string{
	"wrong key":     "moto says AccessDeniedException; that it refuses is tested apart",
	"foreign blobs": "moto says AccessDeniedException; that it refuses is tested apart",
}

func startMoto(t *testing.T) (endpoint string) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3: the contract was not run against moto")
	}
	if exec.CommandContext(t.Context(), python, "-c", "import moto.server, moto.kms").Run() != nil {
		t.Skip("python3 has no moto with server and kms: the contract was not run against moto")
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(python, "-m", "moto.server", "-H", "127.0.0.1", "-p", port)
	must(t, cmd.Start())

	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			_ = conn.Close()
			return "http://" + addr
		}
	}

	t.Fatal("moto did not come up in 30 s")
	return ""
}

func TestAWSErrorMap(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)

	for name, want := range map[string]kms.Kind{
		"DisabledException":             kms.Disabled,
		"NotFoundException":             kms.NotFound,
		"AccessDeniedException":         kms.Denied,
		"AccessDenied":                  kms.Denied,
		"NotAuthorized":                 kms.Denied,
		"UnrecognizedClientException":   kms.Denied,
		"InvalidClientTokenId":          kms.Denied,
		"OptInRequired":                 kms.Denied,
		"InvalidCiphertextException":    kms.InvalidCiphertext,
		"IncorrectKeyException":         kms.InvalidCiphertext,
		"KMSInvalidStateException":      kms.Unreachable, // DescribeKey says that the key is enabled
		"ThrottlingException":           kms.Throttled,
		"LimitExceededException":        kms.Throttled,
		"RequestLimitExceeded":          kms.Throttled,
		"TooManyRequestsException":      kms.Throttled,
		"KeyUnavailableException":       kms.Unreachable,
		"DependencyTimeoutException":    kms.Unreachable,
		"KMSInternalException":          kms.Unreachable,
		"ServiceUnavailable":            kms.Unreachable,
		"ValidationException":           kms.Invalid,
		"SerializationException":        kms.Invalid,
		"InvalidKeyUsageException":      kms.Invalid,
		"UnsupportedOperationException": kms.Invalid,
		"ExpiredTokenException":         kms.Unreachable, // until the credentials are replaced
		"RequestExpired":                kms.Unreachable, // until the clock is right
		"InvalidSignatureException":     kms.Internal,    // a wrong secret
		"SomethingNewException":         kms.Unreachable,
	} {
		server.SetFaults(kmstest.Faults{Fail: name})
		_, unwrapErr := w.Unwrap(t.Context(), make([]byte, 184), nil)
		_, wrapErr := w.Wrap(t.Context(), kmstest.NewDEK(), nil)
		_, _, generateErr := kms.Generate(t.Context(), w, nil)
		for _, err := range []error{unwrapErr, wrapErr, generateErr} {
			e, ok := errors.AsType[*kms.Error](err)
			if !ok || e.Kind != want || e.Reason != name || e.KeyID != w.KeyID() {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
	}
}

func TestAWSKeyStates(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	id, ec := w.KeyID(), kmstest.Context("b", "k")
	_, blob, err := kms.Generate(t.Context(), w, ec)
	must(t, err)

	if want := 184; len(blob) != want {
		t.Errorf("a blob of %d bytes; those of AWS have %d", len(blob), want)
	}

	check := func(name string, want kms.Kind, reason string) {
		t.Helper()
		_, err := kms.Unwrap(t.Context(), w, blob, ec)
		if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != want || e.Reason != reason || !e.Revoked() {
			t.Errorf("%s: %v, want %v by %s", name, err, want, reason)
		}
	}

	must(t, server.DisableKey(id))
	check("disabled", kms.Disabled, "DisabledException")
	must(t, server.EnableKey(id))

	if _, err := kms.Unwrap(t.Context(), w, blob, ec); err != nil {
		t.Errorf("enabled again: %v", err)
	}

	must(t, server.ScheduleKeyDeletion(id))
	check("scheduled for deletion", kms.PendingDeletion, "KMSInvalidStateException")
	server.SetFaults(kmstest.Faults{Operations: []string{"DescribeKey"}, Deny: true})
	check("scheduled, and DescribeKey denied", kms.PendingDeletion, "KMSInvalidStateException")

	for name, f := range map[string]kmstest.Faults{
		"throttled": {ThrottleNext: 100}, "failing": {Fail: "KMSInternalException"}, "gone": {Drop: true},
	} {
		f.Operations = []string{"DescribeKey"}
		server.SetFaults(f)
		_, err := kms.Unwrap(t.Context(), server.OpenKey(t, id, nil), blob, ec)
		wantKind(t, "scheduled, and DescribeKey is "+name, err, kms.Unreachable)
	}

	server.SetFaults(kmstest.Faults{})
	must(t, server.CancelKeyDeletion(id))
	check("canceled deletion", kms.Disabled, "DisabledException")
	server.SetFaults(kmstest.Faults{Deny: true})
	check("denied", kms.Denied, "AccessDeniedException")
	server.SetFaults(kmstest.Faults{})
	must(t, server.DestroyKey(id))

	check("destroyed", kms.NotFound, "NotFoundException")
}

func TestAWSUnreachable(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, func(c *kms.AWSConfig) { c.Timeout = 300 * time.Millisecond })
	_, blob, err := kms.Generate(t.Context(), w, nil)
	must(t, err)

	check := func(name string) {
		t.Helper()
		start := time.Now()
		_, err := w.Unwrap(t.Context(), blob, nil)
		if !kms.IsUnreachable(err) {
			t.Errorf("%s: %v, want unreachable", name, err)
		}

		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: it took %v, with a timeout of 300 ms", name, d)
		}
	}

	server.SetFaults(kmstest.Faults{Hang: true})
	check("hang")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()

	if _, err := w.Unwrap(ctx, blob, nil); !kms.IsUnreachable(err) {
		t.Errorf("the caller's deadline: %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)

	if _, err := w.Unwrap(ctx, blob, nil); !errors.Is(err, context.Canceled) || kms.IsUnreachable(err) {
		t.Errorf("canceled in flight: %v", err)
	}

	server.SetFaults(kmstest.Faults{Drop: true})
	check("dropped connection")
	must(t, server.Close())
	check("no listener")
}

// A call is one attempt. Retry makes more.
func TestAWSMakesOneAttempt(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	for name, faults := range map[string]kmstest.Faults{
		"throttled":           {ThrottleNext: 9},
		"an internal error":   {Fail: "KMSInternalException"},
		"no answer":           {Drop: true},
		"a refusal":           {Deny: true},
		"a clock that is off": {Skew: "Signature expired: now"},
	} {
		t.Run(name, func(t *testing.T) {
			before := server.Calls()["GenerateDataKey"]
			server.SetFaults(faults)
			if _, _, err := kms.Generate(t.Context(), w, nil); err == nil {
				t.Error("no error")
			}
			if n := server.Calls()["GenerateDataKey"] - before; n != 1 {
				t.Errorf("%d attempts, want 1", n)
			}
		})
	}
}

// Because the request names the key, a KMS that could open the blob refuses
// it.
func TestAWSPinsTheKey(t *testing.T) {
	server := kmstest.StartTest(t)
	a, b := server.NewKey(t, nil), server.NewKey(t, nil)
	_, blob, err := kms.Generate(t.Context(), a, nil)
	must(t, err)
	_, err = kms.Unwrap(t.Context(), b, blob, nil)
	if e, ok := errors.AsType[*kms.Error](err); !ok || e.Reason != "IncorrectKeyException" {
		t.Errorf("%v, want IncorrectKeyException", err)
	}
}

func TestAWSAlias(t *testing.T) {
	server := kmstest.StartTest(t)
	oldKey, newKey := server.NewKey(t, nil).KeyID(), server.NewKey(t, nil).KeyID()
	must(t, server.SetAlias("alias/app", oldKey))
	before := server.OpenKey(t, "alias/app", nil)
	if before.KeyID() != oldKey {
		t.Fatalf("key id %q, want the key's ARN", before.KeyID())
	}

	_, blob, err := kms.Generate(t.Context(), before, nil)
	must(t, err)
	must(t, server.SetAlias("alias/app", newKey))

	if _, err := kms.Unwrap(t.Context(), before, blob, nil); err != nil {
		t.Errorf("the running proxy lost its key when the alias moved: %v", err)
	}
	if after := server.OpenKey(t, "alias/app", nil); after.KeyID() != newKey {
		t.Errorf("after a restart: %q, want the new key", after.KeyID())
	}

	if _, err := kms.Unwrap(t.Context(), server.OpenKey(t, oldKey, nil), blob, nil); err != nil {
		t.Errorf("the old key by its ARN: %v", err)
	}

	bare := oldKey[strings.LastIndexByte(oldKey, '/')+1:]
	if w := server.OpenKey(t, bare, nil); w.KeyID() != oldKey {
		t.Errorf("a bare key id gives %q, want the ARN", w.KeyID())
	}
}

func TestAWSConfigsThatAreRefused(t *testing.T) {
	arn := "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")

	for name, cfg := range map[string]kms.AWSConfig{
		"no key":                {Region: "us-east-1"},
		"region of another":     {KeyID: arn, Region: "eu-central-1"},
		"no region":             {KeyID: "alias/app"},
		"another service":       {KeyID: "arn:aws:s3:::bucket"},
		"a grant":               {KeyID: strings.Replace(arn, ":key/", ":grant/", 1)},
		"half an ARN":           {KeyID: "arn:aws:kms"},
		"not ASCII":             {KeyID: "alias/ü", Region: "us-east-1"},
		"two lines":             {KeyID: arn + "\n"},
		"a region with a slash": {KeyID: strings.Replace(arn, "us-east-1", "evil.example/", 1)},
		"FIPS at an endpoint":   {KeyID: arn, FIPS: true, Endpoint: "https://kms.example"},
	} {
		_, err := kms.NewAWS(t.Context(), cfg)
		if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != kms.Invalid {
			t.Errorf("%s: %v, want invalid request", name, err)
		}
	}

	if w, err := kms.NewAWS(t.Context(), kms.AWSConfig{KeyID: arn}); err != nil || w.KeyID() != arn {
		t.Errorf("a key ARN alone must do, with nothing listening: %v", err)
	}
}

// Even if a broken or hostile server quotes requests and responses, errors
// must not contain a DEK.
func TestAWSErrorsHoldNoKeys(t *testing.T) {
	dek := kmstest.NewDEK()
	encoded := base64.StdEncoding.EncodeToString(dek)
	bodies := map[string]string{
		"message":       `{"__type":"ValidationException","message":"bad: ` + encoded + `"}`,
		"broken answer": `{"Plaintext":"` + encoded + `","KeyId":`,
		"wrong type":    `{"Plaintext":["` + encoded + `"]}`,
		"other key":     `{"Plaintext":"` + encoded + `","KeyId":"other","CiphertextBlob":"AAAA"}`,
	}

	var body string
	status := 400
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	defer server.Close()

	w, err := kms.NewAWS(t.Context(), kms.AWSConfig{
		KeyID: "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", Endpoint: server.URL,
		Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "example", ""),
	})

	must(t, err)
	for name, b := range bodies {
		body, status = b, 200
		if name == "message" {
			status = 400
		}

		_, wrapErr := w.Wrap(t.Context(), dek, nil)
		errs := []error{wrapErr}

		if name != "message" { // only Wrap sends the DEK to the server
			_, unwrapErr := w.Unwrap(t.Context(), []byte("blob"), nil)
			_, _, generateErr := kms.Generate(t.Context(), w, nil)
			errs = append(errs, unwrapErr, generateErr)
		}

		for _, err := range errs {
			if err == nil {
				t.Errorf("%s: no error", name)
				continue
			}
			if op, ok := errors.AsType[*smithy.OperationError](err); ok { // may contain the response
				t.Errorf("%s: the SDK's error was kept: %v", name, op)
			}

			deep, _ := json.Marshal(err)
			if text := fmt.Sprintf("%v %+v %#v %s", err, err, err, deep); strings.Contains(text, encoded[:12]) {
				t.Errorf("%s: the error holds the DEK", name)
			}
		}
	}
}

func TestAWSAssumesARole(t *testing.T) {
	server := kmstest.StartTest(t)
	answer := `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>` +
		`<AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>` +
		`<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult>` +
		`<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleResponse>`

	status, got := http.StatusOK, ""
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.FormValue("RoleArn") + " " + r.FormValue("ExternalId")
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	}))
	defer sts.Close()

	t.Setenv("AWS_ENDPOINT_URL_STS", sts.URL)
	role := func(c *kms.AWSConfig) {
		c.RoleARN, c.ExternalID = "arn:aws:iam::111122223333:role/proxy", "customer-7"
	}
	if _, _, err := kms.Generate(t.Context(), server.NewKey(t, role), nil); err != nil {
		t.Errorf("with a role: %v", err)
	}

	if want := "arn:aws:iam::111122223333:role/proxy customer-7"; got != want {
		t.Errorf("STS was asked for %q, want %q", got, want)
	}

	status = http.StatusForbidden
	for code, want := range map[string]kms.Kind{
		"AccessDenied":          kms.Denied, // the role can no longer be assumed
		"ExpiredToken":          kms.Unreachable,
		"IDPCommunicationError": kms.Unreachable,
		"Throttling":            kms.Throttled,
		"RegionDisabled":        kms.Unreachable, // not in the list of names
	} {
		answer = `<ErrorResponse ` +
			`xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>` + code +
			`</Code><Message>no</Message></Error><RequestId>1</RequestId></ErrorResponse>`
		_, _, err := kms.Generate(t.Context(), server.NewKey(t, role), nil)
		wantKind(t, code, err, want)
	}

	for _, i := range kmstest.Impostors {
		status, answer = i.Status, i.Body
		_, _, err := kms.Generate(t.Context(), server.NewKey(t, role), nil)
		wantKind(t, i.Name, err, kms.Unreachable)
	}

	sts.Close()
	if _, _, err := kms.Generate(t.Context(), server.NewKey(t, role), nil); !kms.IsUnreachable(err) {
		t.Errorf("no STS: %v, want unreachable", err)
	}
}

func TestAWSWithoutCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"} {
		t.Setenv(name, "")
	}

	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	server := kmstest.StartTest(t)
	w := server.NewKey(t, func(c *kms.AWSConfig) { c.Credentials = nil })
	_, _, err := kms.Generate(t.Context(), w, nil)
	if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != kms.Internal ||
		!strings.Contains(err.Error(), "no credentials") {
		t.Errorf("%v, want an internal error about the credentials", err)
	}
}

// An error of the endpoint for container credentials is temporary, whatever
// its name, and says nothing about the key.
func TestAWSContainerCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}

	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	var answer kmstest.Impostor
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer.Answer(w) }))
	defer agent.Close()

	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.URL)

	server := kmstest.StartTest(t)
	for _, status := range []int{400, 403, 404, 429, 500, 503} {
		for _, body := range []string{
			"", "<html>", `{"code":"AccessDenied","message":"no"}`,
			`{"code":"NotFoundException"}`,
		} {
			answer = kmstest.Impostor{Status: status, Type: "application/json", Body: body}
			w := server.NewKey(t, func(c *kms.AWSConfig) { c.Credentials, c.Timeout = nil, 10*time.Second })
			_, _, err := kms.Generate(t.Context(), w, nil)
			wantKind(t, fmt.Sprintf("%d %s", status, body), err, kms.Unreachable)
		}
	}
}

// The SDK learns the clock difference from AWS's response, so the next
// attempt succeeds.
func TestAWSClockSkew(t *testing.T) {
	server := kmstest.StartTest(t)
	server.SetFaults(kmstest.Faults{
		Skew: "Signature expired: 20261129T120000Z is now earlier than 20261129T121000Z", FailNext: 1,
	})

	w := server.NewKey(t, nil)
	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "a signature by a wrong clock", err, kms.Unreachable)

	server.SetFaults(kmstest.Faults{
		Skew: "Signature not yet current: 20261129T120000Z is still later than 20261129T115000Z", FailNext: 1,
	})

	if _, _, err := kms.Generate(t.Context(), kms.Retry(w, kms.RetryConfig{}), nil); err != nil {
		t.Errorf("with a second attempt: %v", err)
	}
}

// Environments with their own CA bundle are common. The SDK then needs an
// HTTP client that it can configure.
func TestAWSWithCABundle(t *testing.T) {
	bundle := t.TempDir() + "/ca.pem"
	https := httptest.NewTLSServer(nil)
	https.Close()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: https.Certificate().Raw})
	must(t, os.WriteFile(bundle, cert, 0o600))
	t.Setenv("AWS_CA_BUNDLE", bundle)
	server := kmstest.StartTest(t)
	if _, _, err := kms.Generate(t.Context(), server.NewKey(t, nil), nil); err != nil {
		t.Error(err)
	}
}

// Credentials that are replaced in the file are used at once: here the old
// ones are denied.
func TestAWSRotatedCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	rotate := func(id string) {
		must(t, os.WriteFile(file, fmt.Appendf(nil, "[default]\naws_access_key_id=%s\naws_secret_access_key=s\n",
			id), 0o600))
	}

	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}

	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	rotate("AKIDOLD")
	server := kmstest.StartTest(t)
	w := server.NewKey(t, func(c *kms.AWSConfig) { c.Credentials = nil })
	must(t, server.PutKeyPolicy(w.KeyID(),
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"`+
			server.UserARN("AKIDNEW")+`"},"Action":"kms:*","Resource":"*"}]}`))

	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "the old keys", err, kms.Denied)

	rotate("AKIDNEW")
	for range 400 {
		if _, _, err = kms.Generate(t.Context(), w, nil); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}

	t.Errorf("the new keys are never used: %v", err)
}

// ca_file contains the authorities for the KMS, AWS_CA_BUNDLE those for all
// of AWS. Both are reloaded.
func TestAWSAuthorities(t *testing.T) {
	server := kmstest.StartTest(t)
	target, err := url.Parse(server.URL())
	must(t, err)
	secure := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(target))
	defer secure.Close()

	right := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	dir := t.TempDir()
	for name, open := range map[string]func(t *testing.T, file string, report kms.Report) kms.Wrapper{
		"ca_file": func(t *testing.T, file string, report kms.Report) kms.Wrapper {
			return server.NewKey(t, func(c *kms.AWSConfig) {
				c.Endpoint, c.CAFile, c.Report = secure.URL, file,
					report
			})
		},
		"AWS_CA_BUNDLE": func(t *testing.T, file string, report kms.Report) kms.Wrapper {
			t.Setenv("AWS_CA_BUNDLE", file)
			return server.NewKey(t, func(c *kms.AWSConfig) { c.Endpoint, c.Report = secure.URL, report })
		},
		"both": func(t *testing.T, file string, report kms.Report) kms.Wrapper {
			other := filepath.Join(dir, "other")
			must(t, os.WriteFile(other, otherAuthority(t), 0o600))
			t.Setenv("AWS_CA_BUNDLE", other)

			return server.NewKey(t, func(c *kms.AWSConfig) {
				c.Endpoint, c.CAFile, c.Report = secure.URL, file,
					report
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			wantAuthorities(t, filepath.Join(dir, "ca"), right, open)
		})
	}

	_, err = kms.NewAWS(t.Context(), kms.AWSConfig{KeyID: server.NewKey(t, nil).KeyID(), CAFile: "/nonexistent"})
	wantKind(t, "a file that is not there", err, kms.Invalid)
}

// wantAuthorities checks that a key trusts its CA file and notices changes.
func wantAuthorities(
	t *testing.T, file string, right []byte, open func(t *testing.T, file string, report kms.Report) kms.Wrapper,
) {
	t.Helper()
	must(t, os.WriteFile(file, otherAuthority(t), 0o600))
	var mu sync.Mutex
	var reports []error
	w := open(t, file, func(_ string, err error) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, err)
	})

	_, _, err := kms.Generate(t.Context(), w, nil)
	wantKind(t, "another authority", err, kms.Unreachable)

	must(t, os.WriteFile(file, right, 0o600))
	for range 400 {
		if _, _, err = kms.Generate(t.Context(), w, nil); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}

	if err != nil {
		t.Fatalf("the new authority is never trusted: %v", err)
	}

	must(t, os.WriteFile(file, []byte("half a"), 0o600))
	time.Sleep(1100 * time.Millisecond) // the file is checked once a second

	if _, _, err := kms.Generate(t.Context(), w, nil); err != nil {
		t.Errorf("with a file that cannot be used: %v", err)
	}

	mu.Lock()
	defer mu.Unlock()

	if len(reports) == 0 || reports[0] != nil {
		t.Errorf("reports %v, want the first one to say that the file was read again", reports)
	}
}

// otherAuthority returns an authority that no server here uses.
func otherAuthority(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
