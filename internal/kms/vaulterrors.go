package kms

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/hashicorp/vault/api"
)

// Vault's errors have no codes besides HTTP's, and 400 stands for nearly all
// that the transit engine has to say. What it says of the key, and not of the
// blob, is known by these texts, the same in Vault and OpenBao for many years
// (builtin/logical/transit/path_decrypt.go and sdk/helper/keysutil/policy.go
// of either). Should one of them change, then a refusal stays a refusal, but
// passes for one of the blob.
var vaultTexts = []struct {
	text string
	kind Kind
}{
	{"encryption key not found", NotFound},
	{"disallowed by policy (too old)", Disabled}, // min_decryption_version was raised
	{"refusing to use soft-deleted key", PendingDeletion},
}

// fail turns an error of the client into an *Error. The client's error is not
// kept: it holds the answer when it cannot be parsed, and the URL of the
// server. ctx is the caller's, without our timeout.
func (v *Vault) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: v.id}
	var resp *api.ResponseError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.As(err, &resp) && !isVaultError(resp):
		e.Kind, e.Err = Unreachable, &intermediaryError{resp.StatusCode}
	case errors.As(err, &resp):
		e.Reason = fmt.Sprintf("HTTP %d", resp.StatusCode)
		e.Kind = vaultKind(op, resp)
		if op != "wrap" { // a wrap has a DEK in it, which a broken server might quote
			e.Err = messageError(printable(strings.Join(resp.Errors, "; "), 300))
		}
	default:
		e.Kind, e.Err = Unreachable, vaultTransportError(err)
	}

	return e
}

// failLogin is fail for a login. No text of the server is kept: it might quote
// the secret.
func (v *Vault) failLogin(ctx context.Context, op string, err error) *Error {
	e := v.fail(ctx, op, err)
	var (
		resp *api.ResponseError
		file *fs.PathError
	)

	switch {
	case e.Kind == Canceled:
	case errors.As(err, &resp) && isVaultError(resp):
		e.Err = errors.New("the login failed")
		switch resp.StatusCode {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			// The role or the secret id was taken away: AppRole says 400,
			// Kubernetes 403.
			e.Kind = Denied
		}
	case errors.As(err, &file):
		e.Kind, e.Err = Internal, file
	}

	return e
}

// isVaultError reports whether Vault itself sent an error. All that it says is
// JSON with a list of texts, which may be empty: a 404 of Vault's is
// {"errors":[]}
// (https://developer.hashicorp.com/vault/api-docs#error-response).
func isVaultError(resp *api.ResponseError) bool { return !resp.RawError && resp.Errors != nil }

// vaultKind goes by
// https://developer.hashicorp.com/vault/api-docs#http-status-codes.
func vaultKind(op string, resp *api.ResponseError) Kind {
	switch resp.StatusCode {
	case http.StatusBadRequest:
		for _, text := range resp.Errors {
			for _, known := range vaultTexts {
				if strings.Contains(text, known.text) {
					return known.kind
				}
			}
		}

		if op == "unwrap" {
			return InvalidCiphertext
		}
		return Invalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return Denied
	case http.StatusNotFound:
		return NotFound // the engine is not mounted, or no longer
	case http.StatusTooManyRequests:
		return Throttled
	case http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
		return Invalid
	default:
		// 412: a replica that is behind. 472, 473: a secondary that does not
		// serve. 5xx: sealed, no leader, storage down. What Vault does not list
		// says nothing of the key, nor of the configuration.
		return Unreachable
	}
}

// isVaultForbidden reports whether Vault refused the token: an expired one and
// one without the right to do this get the same status
// (https://developer.hashicorp.com/vault/docs/concepts/tokens).
func isVaultForbidden(err error) bool {
	var resp *api.ResponseError
	return errors.As(err, &resp) && isVaultError(resp) && resp.StatusCode == http.StatusForbidden
}

// vaultTransportError is the cause of a call that got no answer, or none that
// can be read.
func vaultTransportError(err error) error {
	if cause := networkError(err); cause != nil {
		return cause
	}

	var send *url.Error
	switch {
	case errors.As(err, &send):
		return errConnectionLost
	case errors.Is(err, errVaultAnswer):
		return errVaultAnswer
	default:
		return errors.New("the request was not sent, or its answer cannot be read")
	}
}
