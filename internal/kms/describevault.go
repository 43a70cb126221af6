package kms

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
)

// VaultDescription describes a transit key and the token of the proxy.
type VaultDescription struct {
	KeyErr  error // of reading the key; if it is not nil, the next fields are not set
	Type    string
	Derived bool
	// Exportable means that the key can be read, and PlaintextBackup that
	// it can be copied to a backup.
	Exportable, PlaintextBackup, DeletionAllowed bool
	Latest, MinDecryption, MinEncryption         int
	AutoRotate                                   int // in seconds; 0 for never

	// Capabilities are those of the token, by path: what it may do there.
	Capabilities    map[string][]string
	CapabilitiesErr error // of sys/capabilities-self

	Policies  []string // of the token
	TokenType string
	TokenErr  error // of auth/token/lookup-self
}

// VaultPaths are the paths about which Describe asks.
type VaultPaths struct {
	Needed   []string // the provider uses "update" on these
	Reading  []string // they describe the key
	Changing []string // they change or read the key itself, or who may use it
}

// Paths returns the paths that concern the key.
func (v *Vault) Paths() VaultPaths {
	of := func(verb string) string { return v.mount + "/" + verb + "/" + v.key }
	key := of("keys")
	return VaultPaths{
		Needed:  []string{of("encrypt"), of("decrypt")},
		Reading: []string{key},
		Changing: []string{
			key, key + "/config", key + "/rotate", key + "/trim", key + "/import", key + "/import_version",
			of("export/encryption-key"), of("backup"), of("restore"), of("datakey/plaintext"),
			"sys/mounts/" + v.mount, "sys/policies/acl/cmekproxy", "sys/auth/approle", "auth/token/create",
		},
	}
}

// Describe reads what Vault says about the key, and what the token may do
// (https://developer.hashicorp.com/vault/api-docs/system/capabilities-self).
func (v *Vault) Describe(ctx context.Context) (d VaultDescription) {
	var key struct {
		Type                 string `json:"type"`
		Derived              bool   `json:"derived"`
		Exportable           bool   `json:"exportable"`
		AllowPlaintextBackup bool   `json:"allow_plaintext_backup"`
		DeletionAllowed      bool   `json:"deletion_allowed"`
		Latest               int    `json:"latest_version"`
		MinDecryption        int    `json:"min_decryption_version"`
		MinEncryption        int    `json:"min_encryption_version"`
		AutoRotate           int    `json:"auto_rotate_period"`
	}
	d.KeyErr = v.read(ctx, http.MethodGet, v.mount+"/keys/"+v.key, nil, &key)
	d.Type, d.Derived, d.Exportable, d.PlaintextBackup = key.Type, key.Derived, key.Exportable, key.AllowPlaintextBackup
	d.DeletionAllowed, d.AutoRotate = key.DeletionAllowed, key.AutoRotate
	d.Latest, d.MinDecryption, d.MinEncryption = key.Latest, key.MinDecryption, key.MinEncryption

	d.Capabilities, d.CapabilitiesErr = v.capabilities(ctx)

	var token struct {
		Policies         []string `json:"policies"`
		IdentityPolicies []string `json:"identity_policies"`
		Type             string   `json:"type"`
	}
	d.TokenErr = v.read(ctx, http.MethodGet, "auth/token/lookup-self", nil, &token)
	d.Policies, d.TokenType = append(token.Policies, token.IdentityPolicies...), token.Type
	return d
}

func (v *Vault) capabilities(ctx context.Context) (map[string][]string, error) {
	paths := v.Paths()
	in := map[string][]string{"paths": append(paths.Needed, paths.Changing...)}
	var answer map[string]json.RawMessage
	if err := v.read(ctx, http.MethodPut, "sys/capabilities-self", in, &answer); err != nil {
		return nil, err
	}

	out := make(map[string][]string, len(answer))
	for _, path := range in["paths"] {
		var list []string
		if json.Unmarshal(answer[path], &list) != nil || len(list) == 0 {
			return nil, &Error{Kind: Unreachable, Op: "describe", KeyID: v.id, Err: errVaultAnswer}
		}
		out[path] = list
	}
	return out, nil
}

// read makes a request that changes nothing, and stores the data of the
// response in out.
func (v *Vault) read(ctx context.Context, method, path string, in, out any) error {
	s, err := v.login.session(ctx, nil)
	if err != nil {
		return v.failLogin(ctx, "describe", err)
	}

	call, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	r := s.client.NewRequest(method, "/v1/"+path)
	if in != nil {
		if err := r.SetJSONBody(in); err != nil {
			return &Error{Kind: Invalid, Op: "describe", KeyID: v.id, Err: err}
		}
	}

	resp, err := s.client.RawRequestWithContext(call, r) //nolint:staticcheck // see (*Vault).send
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return v.fail(ctx, "describe", err)
	}

	var answer struct {
		Data json.RawMessage `json:"data"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, vaultMaxAnswer)).Decode(&answer)
	if err == nil {
		err = json.Unmarshal(answer.Data, out)
	}
	if err != nil {
		return &Error{Kind: Unreachable, Op: "describe", KeyID: v.id, Err: errVaultAnswer}
	}
	return nil
}
