package kmstest

import (
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Impostor is a response from an intermediary between the proxy and the
// KMS. It may look like a refusal or any other response, but the KMS did
// not send it.
type Impostor struct {
	Name   string
	Status int
	Type   string // Content-Type
	Body   string
	Header map[string]string
	// Own is the server whose own responses look like this one. That
	// server's provider cannot tell the difference.
	Own string
}

const (
	htmlForbidden = "<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body>\r\n" +
		"<center><h1>403 Forbidden</h1></center>\r\n" +
		"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
	htmlLogin = "<!DOCTYPE html><html><body><form action=/login><input name=user></form></body></html>"
	typeHTML  = "text/html"
	typeJSON  = "application/json"
)

// Impostors are responses of load balancers, firewalls, ingresses,
// gateways, meshes and captive portals.
var Impostors = []Impostor{
	{Name: "a balancer's 400", Status: 400, Type: typeHTML, Body: "<html><h1>400 Bad Request</h1></html>"},
	{Name: "a proxy's 401", Status: 401, Type: typeHTML, Body: "<html><h1>401 Unauthorized</h1></html>"},
	{
		Name: "a challenge of another kind", Status: 401,
		Header: map[string]string{"Www-Authenticate": `Basic realm="proxy"`},
	},
	{Name: "a firewall's 403", Status: 403, Type: typeHTML, Body: htmlForbidden},
	{Name: "an empty 403", Status: 403},
	{Name: "a mesh's 403", Status: 403, Type: "text/plain", Body: "RBAC: access denied"},
	{Name: "a balancer's 404", Status: 404, Type: typeHTML, Body: "<html><h1>404 Not Found</h1></html>"},
	{Name: "an ingress without a route", Status: 404, Type: "text/plain", Body: "default backend - 404"},
	{Name: "an empty 404", Status: 404},
	{Name: "a 405", Status: 405, Type: typeHTML, Body: "<html><h1>405 Not Allowed</h1></html>"},
	{Name: "a proxy that requires a login", Status: 407, Type: typeHTML, Body: htmlLogin},
	{Name: "a 409", Status: 409, Type: typeHTML, Body: "<html><h1>409 Conflict</h1></html>"},
	{Name: "a 410", Status: 410, Type: typeHTML, Body: "<html><h1>410 Gone</h1></html>"},
	{Name: "a 413", Status: 413, Type: typeHTML, Body: "<html><h1>413 Request Entity Too Large</h1></html>"},
	{Name: "a gateway's rate limit", Status: 429, Type: typeHTML, Body: "<html><h1>429 Too Many Requests</h1></html>"},
	{Name: "a censor's 451", Status: 451, Type: typeHTML, Body: "<html><h1>451</h1></html>"},
	{Name: "a 500", Status: 500, Type: typeHTML, Body: "<html><h1>500 Internal Server Error</h1></html>"},
	{Name: "a 502", Status: 502, Type: typeHTML, Body: "<html><h1>502 Bad Gateway</h1></html>"},
	{Name: "a 503", Status: 503, Type: typeHTML, Body: "<html><h1>503 Service Temporarily Unavailable</h1></html>"},
	{Name: "an unknown status", Status: 599, Type: typeHTML, Body: "<html><h1>?</h1></html>"},
	{Name: "a portal's login page", Status: 200, Type: typeHTML, Body: htmlLogin},
	{Name: "an empty 200", Status: 200},
	{Name: "unrelated JSON", Status: 200, Type: typeJSON, Body: `{"status":"ok"}`},
	{Name: "a gateway's JSON", Status: 403, Type: typeJSON, Body: `{"message":"Forbidden"}`},
	{
		Name: "an API gateway of AWS", Status: 403, Type: typeJSON,
		Body:   `{"Message":"User is not authorized to access this resource"}`,
		Header: map[string]string{"X-Amzn-Requestid": "1a2b", "X-Amzn-Errortype": "AccessDeniedException"},
	},
	{
		Name: "an error of AWS without its request id", Status: 400, Type: "application/x-amz-json-1.1",
		Body: `{"__type":"NotFoundException","message":"no"}`,
	},
	{
		Name: "an object store", Status: 403, Type: "application/xml",
		Body: "<Error><Code>AccessDenied</Code><RequestId>1</RequestId></Error>",
	},
	{
		Name: "an API management of Azure", Status: 404, Type: typeJSON,
		Body: `{"statusCode":404,"message":"Resource not found"}`,
	},
	{
		Name: "an error of Azure without its request id", Status: 403, Type: typeJSON,
		Body: `{"error":{"code":"Forbidden","message":"no","innererror":{"code":"KeyDisabled"}}}`,
	},
	{
		Name: "an API server of Kubernetes", Status: 403, Type: typeJSON,
		Body: `{"kind":"Status","status":"Failure","reason":"Forbidden","code":403}`,
	},
	{Name: "errors that are no texts", Status: 404, Type: typeJSON, Body: `{"errors":[{"code":"NOT_FOUND"}]}`},
	{Name: "no errors", Status: 404, Type: typeJSON, Body: `{"errors":null}`},
	{Name: "a Vault", Status: 403, Type: typeJSON, Body: `{"errors":["permission denied"]}`, Own: "vault"},
	{
		Name: "a mesh that speaks gRPC", Status: 200, Type: "application/grpc",
		Header: map[string]string{"Grpc-Status": "7", "Grpc-Message": "RBAC: access denied"},
	},
	{
		Name: "a mesh that speaks gRPC and has no route", Status: 200, Type: "application/grpc",
		Header: map[string]string{"Grpc-Status": "12"},
	},
	{Name: "not found over gRPC", Status: 200, Type: "application/grpc", Header: map[string]string{"Grpc-Status": "5"}},
	{
		Name: "failed precondition over gRPC", Status: 200, Type: "application/grpc",
		Header: map[string]string{"Grpc-Status": "9"},
	},
}

// impostorSwitch replaces the responses of a server while it is set.
type impostorSwitch struct{ now atomic.Pointer[Impostor] }

// SetImpostor makes i the response to all requests. Nil restores the
// server's own responses.
func (s *impostorSwitch) SetImpostor(i *Impostor) { s.now.Store(i) }

// impersonate reports whether it has sent a response.
func (s *impostorSwitch) impersonate(w http.ResponseWriter) bool {
	i := s.now.Load()
	if i == nil {
		return false
	}
	i.Answer(w)
	return true
}

// Answer sends the response.
func (i *Impostor) Answer(w http.ResponseWriter) {
	if i.Type != "" {
		w.Header().Set("Content-Type", i.Type)
	}
	for name, value := range i.Header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(i.Status)
	_, _ = io.WriteString(w, i.Body)
}

// RunImpostors checks that no Impostor makes a key look revoked or counts
// as another answer of the KMS, and that the key works afterwards.
func RunImpostors(t *testing.T, server string, w kms.Wrapper, set func(*Impostor)) {
	t.Helper()
	dek := NewDEK()
	blob := wrap(t, w, dek, contractContext)

	for _, i := range Impostors {
		if i.Own == server {
			continue
		}

		set(&i)
		_, wrapErr := w.Wrap(t.Context(), dek, contractContext)
		got, unwrapErr := w.Unwrap(t.Context(), blob, contractContext)
		_, _, generateErr := kms.Generate(t.Context(), w, contractContext)

		if got != nil {
			t.Errorf("%s: a DEK came with the error", i.Name)
		}

		for _, err := range []error{wrapErr, unwrapErr, generateErr} {
			if kms.IsRevoked(err) || !kms.IsUnreachable(err) {
				t.Errorf("%s: %v, want unreachable", i.Name, err)
			}
		}
	}

	set(nil)
	if again := unwrap(t, w, blob, contractContext); string(again) != string(dek) {
		t.Error("another DEK after the impostors")
	}
}
