//go:build pkcs11 && cgo

package kms

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// Return values of PKCS #11 v3.0 that the bindings lack.
const (
	ckrAEADDecryptFailed = 0x42
	ckrTokenExceeded     = 0x201
)

// hsmKinds classifies return values (PKCS #11 Base v2.40, section 5.1;
// http://docs.oasis-open.org/pkcs11/pkcs11-base/v2.40/). Others count as
// Internal.
var hsmKinds = map[uint]Kind{
	// 5.1.6: the key does not exist any more. Handles that ended with a
	// logout have been replaced before this applies.
	pkcs11.CKR_KEY_HANDLE_INVALID:    NotFound,
	pkcs11.CKR_OBJECT_HANDLE_INVALID: NotFound,
	// CKA_ENCRYPT or CKA_DECRYPT was set to false, or the key is outside
	// its dates of validity.
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: Disabled,

	// 5.1.6: this user is not, or no longer, permitted.
	pkcs11.CKR_PIN_INCORRECT:            Denied,
	pkcs11.CKR_PIN_INVALID:              Denied,
	pkcs11.CKR_PIN_LEN_RANGE:            Denied,
	pkcs11.CKR_PIN_EXPIRED:              Denied,
	pkcs11.CKR_PIN_LOCKED:               Denied,
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: Denied,
	pkcs11.CKR_USER_TYPE_INVALID:        Denied,

	// 5.1.6, and v3.0, section 5.1.6.
	pkcs11.CKR_ENCRYPTED_DATA_INVALID:   InvalidCiphertext,
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE: InvalidCiphertext,
	ckrAEADDecryptFailed:                InvalidCiphertext,

	pkcs11.CKR_SESSION_COUNT: Throttled,
	ckrTokenExceeded:         Throttled,

	// 5.1.1 to 5.1.3: failures of the library, the session or the token.
	// They do not depend on the key.
	pkcs11.CKR_GENERAL_ERROR:                  Unreachable,
	pkcs11.CKR_HOST_MEMORY:                    Unreachable,
	pkcs11.CKR_FUNCTION_FAILED:                Unreachable,
	pkcs11.CKR_FUNCTION_CANCELED:              Unreachable,
	pkcs11.CKR_SESSION_HANDLE_INVALID:         Unreachable,
	pkcs11.CKR_SESSION_CLOSED:                 Unreachable,
	pkcs11.CKR_DEVICE_ERROR:                   Unreachable,
	pkcs11.CKR_DEVICE_MEMORY:                  Unreachable,
	pkcs11.CKR_DEVICE_REMOVED:                 Unreachable,
	pkcs11.CKR_TOKEN_NOT_PRESENT:              Unreachable,
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:           Unreachable,
	pkcs11.CKR_SLOT_ID_INVALID:                Unreachable,
	pkcs11.CKR_OPERATION_ACTIVE:               Unreachable,
	pkcs11.CKR_OPERATION_NOT_INITIALIZED:      Unreachable,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:       Unreachable,
	pkcs11.CKR_USER_NOT_LOGGED_IN:             Unreachable, // even after a login, because another caller may log out
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: Unreachable, // the security officer, for a while

	// The key or the token does not support AES-256-GCM.
	pkcs11.CKR_MECHANISM_INVALID:       Invalid,
	pkcs11.CKR_MECHANISM_PARAM_INVALID: Invalid,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:   Invalid,
	pkcs11.CKR_KEY_SIZE_RANGE:          Invalid,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:  Invalid,
}

// Errors of this provider.
var (
	errHSMBlob     = &Error{Kind: InvalidCiphertext, Err: errors.New("the key is intact, but cannot unwrap this blob")}
	errHSMReplaced = &Error{
		Kind: NotFound, Reason: "KeyReplaced", Err: errors.New("the token now has another key with this label and id"),
	}
	errHSMUntested = errors.New("the key has not been tested yet")
)

// hsmFailure converts the error of a call to an *Error. Errors of the
// bindings contain only a number.
func hsmFailure(err error, op, keyID string) *Error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return &Error{Kind: e.Kind, Op: op, KeyID: keyID, Reason: e.Reason, Err: e.Err}
	}

	var code pkcs11.Error
	if !errors.As(err, &code) {
		return &Error{Kind: Internal, Op: op, KeyID: keyID, Err: err}
	}

	kind, ok := hsmKinds[uint(code)]
	if !ok {
		kind = Internal
	}

	return &Error{Kind: kind, Op: op, KeyID: keyID, Reason: ckrName(code)}
}

// ckrName returns the name of a return value, or its number if it has no
// name. The bindings' text is "pkcs11: 0x30: CKR_DEVICE_ERROR".
func ckrName(code pkcs11.Error) string {
	text := code.Error()
	if name := text[strings.LastIndex(text, " ")+1:]; strings.HasPrefix(name, "CKR_") {
		return name
	}
	return fmt.Sprintf("CKR 0x%X", uint(code))
}

// isCKR reports whether err is one of these return values.
func isCKR(err error, codes ...uint) bool {
	var code pkcs11.Error
	return errors.As(err, &code) && slices.Contains(codes, uint(code))
}

// isSessionLost reports whether a new session may help.
func isSessionLost(err error) bool {
	return isCKR(err, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
}

// isModuleGone reports whether the module may have to be restarted to find
// a token. Some modules see only the tokens present at their
// initialization, and some lose a token for the whole process when the
// device disappears.
func isModuleGone(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason == reasonNoToken
	}
	return isCKR(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED)
}

// reasonNoToken is the Reason if no token has the configured label.
const reasonNoToken = "NoToken"

// isBadBlob reports whether err is about a blob, so the session remains
// usable (section 5.9, C_Decrypt).
func isBadBlob(err error) bool {
	return isCKR(err, pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, ckrAEADDecryptFailed)
}

// isAmbiguous reports whether err may be about the blob. Some modules have
// no specific error for a blob that does not unwrap.
func isAmbiguous(err error) bool {
	return isCKR(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DATA_INVALID,
		pkcs11.CKR_DEVICE_ERROR)
}
