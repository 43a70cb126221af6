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

// Vault's errors have no codes besides HTTP's, and 400 stands for nearly all that the transit engine has to say. What
// it says of the key, and not of the blob, is known by these texts, the same in Vault and OpenBao for many years
// (builtin/logical/transit/path_decrypt.go and sdk/helper/keysutil/policy.go of either). Should one of them change,
// then a refusal stays a refusal, but passes for one of the blob.
var vaultTexts = []struct {
	text string
	kind Kind
}{
	{"encryption key not found", NotFound},
	{"disallowed by policy (too old)", Disabled}, // min_decryption_version was raised
	{"refusing to use soft-deleted key", PendingDeletion},
}

// fail turns an error of the client into an *Error. The client's error is not kept: it holds the answer when it cannot
// be parsed, and the URL of the server. ctx is the caller's, without our timeout.
func (v *Vault) fail(ctx context.Context, op string, err error) *Error {
	e := &Error{Op: op, KeyID: v.keyID}
	var resp *api.ResponseError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = Canceled, context.Canceled
	case errors.As(err, &resp):
		e.Reason = fmt.Sprintf("HTTP %d", resp.StatusCode)
		e.Kind = vaultKind(op, resp)
		if op != "wrap" && !resp.RawError { // a wrap has a DEK in it, which a broken server might quote
			e.Err = messageError(printable(strings.Join(resp.Errors, "; "), 300))
		}
	default:
		e.Kind, e.Err = vaultTransportKind(err)
	}
	return e
}

// failLogin is fail for a login. No text of the server is kept: it might quote the secret.
func (v *Vault) failLogin(ctx context.Context, op string, err error) *Error {
	e := v.fail(ctx, op, err)
	var (
		resp *api.ResponseError
		file *fs.PathError
	)
	switch {
	case e.Kind == Canceled:
	case errors.As(err, &resp):
		e.Err = errors.New("the login failed")
		switch resp.StatusCode {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			// The role or the secret id was taken away: AppRole says 400, Kubernetes 403.
			e.Kind = Denied
		}
	case errors.As(err, &file):
		e.Kind, e.Err = Internal, file
	}
	return e
}

// vaultKind goes by https://developer.hashicorp.com/vault/api-docs#http-status-codes.
func vaultKind(op string, resp *api.ResponseError) Kind {
	switch status := resp.StatusCode; {
	case status == http.StatusBadRequest:
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
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return Denied
	case status == http.StatusNotFound:
		return NotFound // the engine is not mounted, or no longer
	case status == http.StatusTooManyRequests:
		return Throttled
	case status == http.StatusPreconditionFailed:
		return Unreachable // a replica that is behind
	case status >= 500:
		return Unreachable // sealed, standby without a leader, storage down
	default:
		return Invalid
	}
}

// isVaultForbidden reports whether Vault refused the token: an expired one and one without the right to do this get
// the same status (https://developer.hashicorp.com/vault/docs/concepts/tokens).
func isVaultForbidden(err error) bool {
	var resp *api.ResponseError
	return errors.As(err, &resp) && resp.StatusCode == http.StatusForbidden
}

// vaultTransportKind is for a call that got no answer, or none that can be read.
func vaultTransportKind(err error) (Kind, error) {
	if cause := networkError(err); cause != nil {
		return Unreachable, cause
	}
	var send *url.Error
	switch {
	case errors.As(err, &send):
		return Unreachable, errLost
	case errors.Is(err, errVaultAnswer):
		return Internal, errVaultAnswer
	default:
		return Internal, errors.New("the request was not sent, or its answer cannot be read")
	}
}
