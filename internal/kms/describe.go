package kms

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// The descriptions in these files are what a KMS says about a key, and about
// what its caller may do with it. They are for people who judge whether the
// proxy was given too much. Each is read by calls that change nothing, even if
// the caller may change everything. Each call has its own error, because a
// caller with least privilege may make few of them.
//
// Texts in a description come from the KMS: they may contain anything.

// AzureDescription describes a key in Azure.
type AzureDescription struct {
	Err             error // of GetKey; if it is not nil, the other fields are not set
	Version         string
	Type            string // such as RSA-HSM
	Operations      []string
	Enabled         bool
	Exportable      bool
	ReleasePolicy   bool // the key can be exported to an environment that meets a policy
	Created         time.Time
	Expires         time.Time // zero for never
	NotBefore       time.Time
	RecoveryLevel   string
	RecoverableDays int
	HSMPlatform     string
	Tags            map[string]string
}

// Describe reads the attributes of the key's current version by
// https://learn.microsoft.com/en-us/rest/api/keyvault/keys/get-key/get-key.
func (a *Azure) Describe(ctx context.Context) (d AzureDescription) {
	var out azkeys.GetKeyResponse
	err := a.attempt(ctx, func(call context.Context) (err error) {
		out, err = a.client.GetKey(call, a.name, "", nil)
		return err
	})
	switch {
	case err != nil:
		return AzureDescription{Err: a.fail(ctx, "describe", err)}
	case out.Attributes == nil || out.Key == nil || out.Key.KID == nil:
		return AzureDescription{Err: &Error{Kind: Unreachable, Op: "describe", KeyID: a.id, Err: errUnreadable}}
	}

	at := out.Attributes
	d = AzureDescription{
		Version: out.Key.KID.Version(), Type: string(valueOf(out.Key.Kty)),
		Enabled: valueOf(at.Enabled), Exportable: valueOf(at.Exportable), ReleasePolicy: out.ReleasePolicy != nil,
		Created: valueOf(at.Created), Expires: valueOf(at.Expires), NotBefore: valueOf(at.NotBefore),
		RecoveryLevel: valueOf(at.RecoveryLevel), RecoverableDays: int(valueOf(at.RecoverableDays)),
		HSMPlatform: valueOf(at.HSMPlatform), Tags: make(map[string]string),
	}

	for _, op := range out.Key.KeyOps {
		d.Operations = append(d.Operations, string(valueOf(op)))
	}
	for name, value := range out.Tags {
		d.Tags[name] = valueOf(value)
	}
	return d
}

// valueOf returns what p points to, or the zero value.
func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// LocalDescription describes a key in a file.
type LocalDescription struct {
	Err      error // if it is not nil, the other fields are not set
	Path     string
	Mode     fs.FileMode
	Owner    int // the user id; -1 if it is unknown
	Versions []LocalVersionState
}

// LocalVersionState is a version of a key in a file.
type LocalVersionState struct {
	Number  int
	State   LocalKeyState
	Created time.Time
}

// Describe reads the attributes of the key file.
func (l *Local) Describe(context.Context) LocalDescription {
	info, err := os.Stat(l.path)
	if err != nil {
		return LocalDescription{Err: l.fail(NotFound, "describe", "", errors.New("the key file cannot be examined"))}
	}

	file, failure := l.read("describe")
	if failure != nil {
		return LocalDescription{Err: failure}
	}
	defer file.Wipe()

	d := LocalDescription{Path: l.path, Mode: info.Mode(), Owner: ownerOf(info)}
	for i, v := range file.Versions {
		d.Versions = append(d.Versions, LocalVersionState{i + 1, v.State, v.Created})
	}
	return d
}

// ownerOf returns the user id of a file's owner.
func ownerOf(info fs.FileInfo) int {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}
