# A transit key for the tenant {{.name}} of cmekproxy, which the vendor may use.
# You apply this on YOUR server. The key stays yours: your administrators administer it,
# and can delete the policy or the key at any time. It works with Vault and OpenBao. The token is
# that of VAULT_TOKEN.

terraform {
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.0"
    }
  }
}

provider "vault" {
  address = "{{.address}}"
{{- if .namespace}}

  namespace = "{{.namespace}}"
{{- end}}
}

# Nobody can read the key out of the server, and nobody can delete it before deletion_allowed is set.
resource "vault_transit_secret_backend_key" "tenant" {
  backend                = "{{.mount}}"
  name                   = "{{.name}}"
  type                   = "aes256-gcm96"
  exportable             = false
  allow_plaintext_backup = false
  deletion_allowed       = false
  auto_rotate_period     = 7776000

  # Without the key, all data under it is lost.
  lifecycle {
    prevent_destroy = true
  }
}

# encrypt: for each new object and each copy. decrypt: to read one. "update" and never "create":
# with "create", encrypting under a deleted key would make a new one. The paths below auth/ let
# the token look at itself and renew itself, and capabilities-self lets "cmekproxy tenant check"
# prove what the token may do, and what not.
resource "vault_policy" "cmekproxy" {
  name = "{{.auth_role}}"

  policy = <<-POLICY
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
}

# Tokens live for an hour and are renewed. The policy "default" is not added. Make the secret id
# by hand, so that it is not in Terraform's state:
#   vault write -wrap-ttl=1h -f auth/approle/role/{{.auth_role}}/secret-id
resource "vault_approle_auth_backend_role" "cmekproxy" {
  backend                 = "approle"
  role_name               = "{{.auth_role}}"
  token_policies          = [vault_policy.cmekproxy.name]
  token_no_default_policy = true
  token_ttl               = 3600
  token_max_ttl           = 86400
  token_type              = "service"
  secret_id_num_uses      = 0
}

output "role_id" {
  description = "For the vendor: login.approle.role_id"
  value       = vault_approle_auth_backend_role.cmekproxy.role_id
}
