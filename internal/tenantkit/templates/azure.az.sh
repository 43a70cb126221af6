#!/bin/sh
# A Key Vault key for the tenant {{.name}} of cmekproxy, which the vendor may use.
# You apply this in YOUR Microsoft Entra tenant {{.azure_tenant}}. The key
# stays yours: your administrators administer it, and can disable it at any time.
set -eu

tenant='{{.azure_tenant}}'
group='{{.resource_group}}'
location='{{.location}}'
vault='{{.vault_name}}'
key='{{.name}}'
vendor='{{.app_id}}'

if [ "$(az account show --query tenantId --output tsv)" != "$tenant" ]; then
  echo "You are logged in to another tenant: az login --tenant $tenant" >&2
  exit 1
fi

# With purge protection, nobody can destroy the key in less than 90 days, not even you. This
# cannot be switched off.
if ! az keyvault show --name "$vault" --output none 2>/dev/null; then
  az keyvault create --name "$vault" --resource-group "$group" --location "$location" \
    --enable-rbac-authorization true --enable-purge-protection true --retention-days 90 --output none
fi

# wrapKey and unwrapKey only: the key cannot encrypt data, sign or be exported. You need the role
# Key Vault Crypto Officer on the vault; a new one takes some minutes to work.
az keyvault key create --vault-name "$vault" --name "$key" --kty RSA --size 3072 \
  --ops wrapKey unwrapKey --output none

# The vendor's application becomes known in your tenant. It gets no permission by that.
if ! az ad sp show --id "$vendor" --output none 2>/dev/null; then
  az ad sp create --id "$vendor" --output none
fi
principal=$(az ad sp show --id "$vendor" --query id --output tsv)

# On this key only. The data actions in the role are keys/wrap (for each new object and each
# copy), keys/unwrap (to read one) and keys/read. Azure's policies cannot depend on the object;
# cmekproxy itself binds each data key to bucket and key of its object.
scope=$(az keyvault show --name "$vault" --query id --output tsv)/keys/$key
az role assignment create --role 'Key Vault Crypto Service Encryption User' \
  --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal --scope "$scope" --output none

echo "For the vendor: https://$vault.vault.azure.net/keys/$key"
