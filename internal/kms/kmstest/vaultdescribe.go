package kmstest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// VaultAttributes is what a key of VaultServer says about itself.
type VaultAttributes struct {
	Exportable, PlaintextBackup, DeletionAllowed bool
}

// SetAttributes replaces what a key says about itself.
func (s *VaultServer) SetAttributes(name string, a VaultAttributes) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].about = a
}

// may returns the capabilities of a token on a path, as Vault does.
func (t *issuedToken) may(path string) []string {
	if t.Grants["*"] != nil {
		return []string{"root"}
	}

	list := slices.Clone(t.Grants[path])
	verb, _, _ := strings.Cut(strings.TrimPrefix(path, "transit/"), "/")
	if strings.HasPrefix(path, "transit/") && (verb == "encrypt" || verb == "decrypt") && !t.NoKeys {
		list = append(list, "update")
		if t.CreateKeys && verb == "encrypt" {
			list = append(list, "create")
		}
	}
	if len(list) == 0 {
		return []string{"deny"}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (t *issuedToken) policies() []string {
	switch {
	case t.Grants["*"] != nil:
		return []string{"root"}
	case t.NoDefaultPolicy:
		return []string{"app"}
	default:
		return []string{"app", "default"}
	}
}

// capabilities implements sys/capabilities-self
// (https://developer.hashicorp.com/vault/api-docs/system/capabilities-self).
// The caller holds s.lock.
func (s *VaultServer) capabilities(r *http.Request, t *issuedToken) (map[string]any, error) {
	var in struct {
		Paths []string `json:"paths"`
	}
	if err := decodeVault(r, &in); err != nil {
		return nil, err
	}
	switch {
	case t.NoDefaultPolicy && !slices.Contains(t.Grants["sys/capabilities-self"], "update"):
		return nil, vaultRefuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	case len(in.Paths) == 0:
		return nil, vaultRefuse(http.StatusBadRequest, "paths must be supplied")
	}

	data := make(map[string]any, len(in.Paths))
	for _, path := range in.Paths {
		data[path] = t.may(path)
	}
	answer := map[string]any{"data": data}
	maps.Copy(answer, data) // as in Vault
	return answer, nil
}

// readKey implements reading a transit key, which shows no key material. The
// caller holds s.lock.
func (s *VaultServer) readKey(r *http.Request, name string, t *issuedToken) (map[string]any, error) {
	granted := t.may("transit/keys/" + name)
	k := s.keys[name]
	switch {
	case r.Method != http.MethodGet:
		return nil, vaultRefuse(http.StatusMethodNotAllowed, "1 error occurred:\n\t* unsupported operation\n\n")
	case !slices.Contains(granted, "read") && !slices.Contains(granted, "root"):
		return nil, vaultRefuse(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	case k == nil:
		return nil, &vaultError{http.StatusNotFound, ""}
	}

	return map[string]any{"data": map[string]any{
		"name": name, "type": k.kind, "derived": k.derived, "exportable": k.about.Exportable,
		"allow_plaintext_backup": k.about.PlaintextBackup, "deletion_allowed": k.about.DeletionAllowed,
		"latest_version": len(k.versions), "min_decryption_version": k.minDecryption, "min_encryption_version": 0,
		"auto_rotate_period": 0, "supports_encryption": true, "supports_decryption": true,
		"imported_key": false,
	}}, nil
}
