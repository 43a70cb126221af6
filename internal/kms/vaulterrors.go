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

// vaultTexts identifies errors about the key rather than the blob. Vault's
// errors have no codes except the HTTP status, and the transit engine uses
// 400 for nearly everything. The texts have been the same in Vault and
// OpenBao for many years (builtin/logical/transit/path_decrypt.go and
// sdk/helper/keysutil/policy.go). If one of them changes, the error still
// is a refusal, but it counts as one of the blob.
var vaultTexts = []struct {
	text string
	kind Kind
}{
	{"encryption key not found", NotFound},
	{"disallowed by policy (too old)", Disabled}, // min_decryption_version was raised
	{"refusing to use soft-deleted key", PendingDeletion},
}

// fail converts an error of the client to an *Error. It drops the client's
// error, which contains the URL of the server, and the response if that is
// malformed. ctx is the caller's context, without our timeout.
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
		if op != "wrap" { // a wrap request contains a DEK, which a broken server might quote
			e.Err = messageError(printable(strings.Join(resp.Errors, "; "), 300))
		}
	default:
		e.Kind, e.Err = Unreachable, vaultTransportError(err)
	}

	return e
}

// failLogin is like fail, for a login. It drops the server's text, which
// might quote the secret.
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
			// The role or the secret id was removed. AppRole returns 400,
			// Kubernetes 403.
			e.Kind = Denied
		}
	case errors.As(err, &file):
		e.Kind, e.Err = Internal, file
	}

	return e
}

// isVaultError reports whether Vault itself sent the error. Vault's errors
// are JSON with a list of texts, which may be empty: a 404 is {"errors":[]}
// (https://developer.hashicorp.com/vault/api-docs#error-response).
func isVaultError(resp *api.ResponseError) bool { return !resp.RawError && resp.Errors != nil }

// vaultKind classifies errors by
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
		return NotFound // the engine is not mounted
	case http.StatusTooManyRequests:
		return Throttled
	case http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
		return Invalid
	default:
		// 412: a replica lags behind. 472, 473: a secondary that does not
		// serve requests. 5xx: sealed, no leader, or storage failure. Other
		// statuses say nothing about the key or the configuration.
		return Unreachable
	}
}

// isVaultForbidden reports whether Vault refused the token. The status is
// the same for an expired token and for one without permission
// (https://developer.hashicorp.com/vault/docs/concepts/tokens).
func isVaultForbidden(err error) bool {
	var resp *api.ResponseError
	return errors.As(err, &resp) && isVaultError(resp) && resp.StatusCode == http.StatusForbidden
}

// vaultTransportError returns the cause if a call got no response or a
// malformed one.
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
