package kmstest

import "net/http"

// AzureAttributes is what a key of AzureServer says about itself.
type AzureAttributes struct {
	Exportable    bool
	RecoveryLevel string // "" means Recoverable, as in a vault with purge protection
	Expires       int64  // in Unix seconds; 0 for never
	Tags          map[string]string
	// Unreadable forbids GetKey, as a custom role without keys/read.
	Unreadable bool
}

// SetAttributes replaces what a key says about itself.
func (s *AzureServer) SetAttributes(name string, a AzureAttributes) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].about = a
}

// describe implements GetKey
// (https://learn.microsoft.com/en-us/rest/api/keyvault/keys/get-key/get-key).
func (s *AzureServer) describe(name string, trouble Trouble) (any, error) {
	s.count("getkey")
	s.lock.Lock()
	defer s.lock.Unlock()

	k := s.keys[name]
	switch {
	case trouble.Deny, k != nil && k.about.Unreadable:
		return nil, azureRefuse(http.StatusForbidden, "Forbidden", "ForbiddenByRbac",
			"Caller is not authorized to perform action on resource.\r\nAction: 'Microsoft.KeyVault/vaults/keys/read'")
	case k == nil || k.deleted:
		return nil, azureRefuse(http.StatusNotFound, "KeyNotFound", "",
			"A key with (name/id) %s was not found in this key vault.", name)
	}

	v := k.find("")
	kind, level := "oct-HSM", k.about.RecoveryLevel
	if v.isRSA() {
		kind = "RSA"
	}
	if level == "" {
		level = "Recoverable"
	}

	about := map[string]any{
		"enabled": !v.disabled, "created": 1_790_000_000, "updated": 1_790_000_000, "recoveryLevel": level,
		"recoverableDays": 90, "exportable": k.about.Exportable,
	}
	if k.about.Expires > 0 {
		about["exp"] = k.about.Expires
	}
	return map[string]any{
		"key": map[string]any{
			"kid": s.URL() + "/keys/" + name + "/" + v.id, "kty": kind, "key_ops": []string{"wrapKey", "unwrapKey"},
		},
		"attributes": about, "tags": k.about.Tags,
	}, nil
}
