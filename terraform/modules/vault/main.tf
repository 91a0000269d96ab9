# What modal_nomad needs of Vault or OpenBao: that Nomad's workloads may log in, and a policy for each kind of them.

terraform {
  required_version = ">= 1.5"
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.0"
    }
  }
}

locals {
  data     = "${var.mount}/data/${var.prefix}"
  metadata = "${var.mount}/metadata/${var.prefix}"
  # Of each kind: the claims that its identity must have, and its policy.
  kinds = merge(
    {
      modal-containers = {
        claims = {}
        policy = <<-EOT
          path "${local.data}/{{identity.entity.aliases.${vault_jwt_auth_backend.nomad.accessor}.metadata.nomad_namespace}}/*" {
            capabilities = ["read"]
          }
        EOT
      }
      modal-dispatcher = {
        claims = { nomad_namespace = var.namespace, nomad_job_id = "modal-dispatcher" }
        # It writes values and learns the names of their fields; it reads none.
        policy = <<-EOT
          path "${local.data}/*"                      { capabilities = ["create", "update", "patch"] }
          path "${local.metadata}/*"                  { capabilities = ["create", "read", "update", "list", "delete"] }
          path "${var.mount}/subkeys/${var.prefix}/*" { capabilities = ["read"] }
          path "sys/leases/revoke"                    { capabilities = ["update"] }
        EOT
      }
    },
    var.image_secrets ? {
      modal-image-builder = {
        claims = { nomad_namespace = var.image_builder_namespace, nomad_job_id = var.image_builder_job }
        # One job builds for every environment; the dispatcher alone tells it of which Secrets.
        policy = <<-EOT
          path "${local.data}/*" { capabilities = ["read"] }
        EOT
      }
    } : {},
    var.pki_mount == "" ? {} : {
      modal-gateway = {
        claims = { nomad_namespace = var.namespace, nomad_job_id = "modal-gateway" }
        policy = <<-EOT
          path "${var.pki_mount}/issue/modal-gateway" { capabilities = ["update"] }
        EOT
      }
    },
  )
}

resource "vault_jwt_auth_backend" "nomad" {
  path         = var.auth_path
  type         = "jwt"
  description  = "Workloads of Nomad."
  jwks_url     = "${var.nomad_addr}/.well-known/jwks.json"
  jwks_ca_pem  = var.nomad_ca
  default_role = "modal-containers"
}

resource "vault_policy" "modal" {
  for_each = local.kinds
  name     = each.key
  policy   = each.value.policy
}

resource "vault_jwt_auth_backend_role" "modal" {
  for_each                = local.kinds
  backend                 = vault_jwt_auth_backend.nomad.path
  role_name               = each.key
  role_type               = "jwt"
  bound_audiences         = [var.audience]
  bound_claims            = each.value.claims
  user_claim              = "/nomad_job_id"
  user_claim_json_pointer = true
  claim_mappings          = { nomad_namespace = "nomad_namespace" }
  token_type              = "service"
  token_policies          = [vault_policy.modal[each.key].name]
  token_period            = 1800
}

resource "vault_pki_secret_backend_role" "gateway" {
  count                       = var.pki_mount == "" ? 0 : 1
  backend                     = var.pki_mount
  name                        = "modal-gateway"
  allowed_domains             = concat([var.domain], var.custom_domains)
  allow_bare_domains          = true
  allow_subdomains            = true
  allow_wildcard_certificates = true
  key_type                    = "ec"
  key_bits                    = 256
  ttl                         = var.certificate_ttl
  max_ttl                     = var.certificate_ttl
}
