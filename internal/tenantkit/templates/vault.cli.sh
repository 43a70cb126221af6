#!/bin/sh
# A transit key for the tenant {{.name}} of cmekproxy, which the vendor may use.
# You apply this on YOUR server. The key stays yours: your administrators administer it,
# and can delete the policy or the key at any time. For OpenBao, put bao in place of vault.
set -eu

export VAULT_ADDR='{{.address}}'
{{- if .namespace}}
export VAULT_NAMESPACE='{{.namespace}}'
{{- end}}
mount='{{.mount}}'
key='{{.name}}'
role='{{.auth_role}}'

# Nobody can read the key out of the server, and nobody can delete it before deletion_allowed is set.
vault write "$mount/keys/$key" type=aes256-gcm96 exportable=false allow_plaintext_backup=false \
  auto_rotate_period=2160h

# encrypt: for each new object and each copy. decrypt: to read one. "update" and never "create":
# with "create", encrypting under a deleted key would make a new one. The paths below auth/ let
# the token look at itself and renew itself, and capabilities-self lets "cmekproxy tenant check"
# prove what the token may do, and what not.
vault policy write "$role" - <<'POLICY'
path "{{.mount}}/encrypt/{{.name}}" {
  capabilities = ["update"]
}
path "{{.mount}}/decrypt/{{.name}}" {
  capabilities = ["update"]
}
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}
{{- if .inspect}}
path "{{.mount}}/keys/{{.name}}" {
  capabilities = ["read"]
}
{{- end}}
POLICY

# Tokens live for an hour and are renewed. The policy "default" is not added.
vault write "auth/approle/role/$role" token_policies="$role" token_no_default_policy=true \
  token_ttl=1h token_max_ttl=24h token_type=service secret_id_num_uses=0

echo "For the vendor, the role id:"
vault read -field=role_id "auth/approle/role/$role/role-id"

# The vendor unwraps it once, within an hour: vault unwrap -field=secret_id TOKEN. If that
# fails, someone else has done it: run this command again, and destroy the other secret id.
echo "For the vendor, the wrapped secret id:"
vault write -wrap-ttl=1h -field=wrapping_token -f "auth/approle/role/$role/secret-id"
