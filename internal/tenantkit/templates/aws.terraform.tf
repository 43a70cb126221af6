# A KMS key for the tenant {{.name}} of cmekproxy, and a role with which the vendor may use it.
# You apply this in YOUR account {{.account}}, in the region {{.region}}. The key
# stays yours: your administrators administer it, and can disable it at any time.

terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

provider "aws" {
  region              = "{{.region}}"
  allowed_account_ids = ["{{.account}}"]
}

# Only this principal of the vendor, and only on behalf of this tenant: the vendor's other
# customers have other external ids. The role has no policies of its own. What it may do is in
# the key policy below.
resource "aws_iam_role" "cmekproxy" {
  name                 = "cmekproxy-{{.name}}"
  description          = "The vendor uses the key alias/{{.name}} with this role, and nothing else"
  max_session_duration = 3600

  assume_role_policy = <<-POLICY
    {
      "Version": "2012-10-17",
      "Statement": [
        {
          "Sid": "OnlyTheVendorWithTheExternalId",
          "Effect": "Allow",
          "Principal": {"AWS": "{{.vendor_principal}}"},
          "Action": "sts:AssumeRole",
          "Condition": {"StringEquals": {"sts:ExternalId": "{{.external_id}}"}}
        }
      ]
    }
  POLICY
}

# The statements of the key policy:
#
# - YourAccountAdministersTheKey: your own administrators, as IAM in your account allows. This
#   is AWS's default.
# - VendorUsesTheKeyForItsObjects: GenerateDataKey for each new object, Decrypt to read one,
#   Encrypt to copy an object and to move its data key. All only for objects in
#   s3://{{.bucket}}/{{.prefix}}: cmekproxy sends bucket and key of the object as the encryption
#   context, with no other names.
{{- if .bucket_keys}}
#   With bucket keys (dek_reuse), the context has only the bucket. So AWS cannot limit these
#   calls to the prefix.
{{- end}}
# - VendorTriesTheKey: at the start, cmekproxy tries the key with a data key that protects
#   nothing.
# - VendorDescribesTheKey: to resolve the alias, and to tell a disabled key from one that is
#   being deleted.
{{- if .inspect}} The others only read: "cmekproxy tenant check" proves with them what
#   this policy gives to the vendor, and what not.
{{- end}}
resource "aws_kms_key" "tenant" {
  description              = "cmekproxy: data of the tenant {{.name}}"
  customer_master_key_spec = "SYMMETRIC_DEFAULT"
  key_usage                = "ENCRYPT_DECRYPT"
  multi_region             = false

  # Rotation keeps the key's ARN, and old data stays readable.
  enable_key_rotation = true

  # If the key is ever deleted, there are 30 days to change one's mind.
  deletion_window_in_days = 30

  policy = <<-POLICY
    {
      "Version": "2012-10-17",
      "Statement": [
        {
          "Sid": "YourAccountAdministersTheKey",
          "Effect": "Allow",
          "Principal": {"AWS": "arn:{{.partition}}:iam::{{.account}}:root"},
          "Action": "kms:*",
          "Resource": "*"
        },
        {
          "Sid": "VendorUsesTheKeyForItsObjects",
          "Effect": "Allow",
          "Principal": {"AWS": "${aws_iam_role.cmekproxy.arn}"},
          "Action": ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"],
          "Resource": "*",
          "Condition": {
            "StringEquals": {"kms:EncryptionContext:bucket": "{{.bucket}}"},
            "{{if .bucket_keys}}StringLikeIfExists{{else}}StringLike{{end}}": {"kms:EncryptionContext:key": "{{.prefix}}*"},
            "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["bucket", "key"]}
          }
        },
        {
          "Sid": "VendorTriesTheKey",
          "Effect": "Allow",
          "Principal": {"AWS": "${aws_iam_role.cmekproxy.arn}"},
          "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
          "Resource": "*",
          "Condition": {
            "StringEquals": {
              "kms:EncryptionContext:bucket": "{{.check_bucket}}",
              "kms:EncryptionContext:key": "{{.check_key}}"
            },
            "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["bucket", "key"]}
          }
        },
        {
          "Sid": "VendorDescribesTheKey",
          "Effect": "Allow",
          "Principal": {"AWS": "${aws_iam_role.cmekproxy.arn}"},
          "Action": ["kms:DescribeKey"{{if .inspect}}, "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants"{{end}}],
          "Resource": "*"
        }
      ]
    }
  POLICY

  # Without the key, all data under it is lost.
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "tenant" {
  name          = "alias/{{.name}}"
  target_key_id = aws_kms_key.tenant.key_id
}

output "key_arn" {
  description = "For the vendor: key_id"
  value       = aws_kms_key.tenant.arn
}

output "role_arn" {
  description = "For the vendor: role_arn"
  value       = aws_iam_role.cmekproxy.arn
}
