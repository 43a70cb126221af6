# A Key Vault key for the tenant {{.name}} of cmekproxy, which the vendor may use.
# You apply this in YOUR Microsoft Entra tenant {{.azure_tenant}}. The key
# stays yours: your administrators administer it, and can disable it at any time. The subscription
# is that of ARM_SUBSCRIPTION_ID, and you need the role Key Vault Crypto Officer to make the key.

terraform {
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = ">= 4.42"
    }
    azuread = {
      source  = "hashicorp/azuread"
      version = ">= 3.0"
    }
  }
}

provider "azurerm" {
  tenant_id = "{{.azure_tenant}}"
  features {}
}

provider "azuread" {
  tenant_id = "{{.azure_tenant}}"
}

# With purge protection, nobody can destroy the key in less than 90 days, not even you. This
# cannot be switched off.
resource "azurerm_key_vault" "cmekproxy" {
  name                       = "{{.vault_name}}"
  resource_group_name        = "{{.resource_group}}"
  location                   = "{{.location}}"
  tenant_id                  = "{{.azure_tenant}}"
  sku_name                   = "standard"
  rbac_authorization_enabled = true
  purge_protection_enabled   = true
  soft_delete_retention_days = 90
}

# wrapKey and unwrapKey only: the key cannot encrypt data, sign or be exported.
resource "azurerm_key_vault_key" "tenant" {
  name         = "{{.name}}"
  key_vault_id = azurerm_key_vault.cmekproxy.id
  key_type     = "RSA"
  key_size     = 3072
  key_opts     = ["wrapKey", "unwrapKey"]

  # Without the key, all data under it is lost.
  lifecycle {
    prevent_destroy = true
  }
}

# The vendor's application becomes known in your tenant. It gets no permission by that.
resource "azuread_service_principal" "vendor" {
  client_id    = "{{.app_id}}"
  use_existing = true
}

# On this key only. The data actions in the role are keys/wrap (for each new object and each
# copy), keys/unwrap (to read one) and keys/read. Azure's policies cannot depend on the object;
# cmekproxy itself binds each data key to bucket and key of its object.
resource "azurerm_role_assignment" "cmekproxy" {
  scope                = azurerm_key_vault_key.tenant.resource_versionless_id
  role_definition_name = "Key Vault Crypto Service Encryption User"
  principal_id         = azuread_service_principal.vendor.object_id
}

output "key_id" {
  description = "For the vendor: key_id"
  value       = azurerm_key_vault_key.tenant.versionless_id
}
