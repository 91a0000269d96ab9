# modal_nomad on a cluster that has Nomad with ACLs, Consul, and Vault or OpenBao:
#
#   terraform init
#   terraform apply -var nomad_addr=... -var node_addr=... -var consul_addr=... -var vault_addr=...
#
# NOMAD_TOKEN, CONSUL_HTTP_TOKEN and VAULT_TOKEN of the environment are used. The agents' configuration needs
# their `consul` and `vault` blocks; docs/terraform.md shows them.

terraform {
  required_version = ">= 1.5"
  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.0"
    }
    consul = {
      source  = "hashicorp/consul"
      version = ">= 2.20"
    }
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.0"
    }
  }
}

provider "nomad" {
  address = var.nomad_addr
}

provider "consul" {
  address = var.consul_addr
}

provider "vault" {
  address = var.vault_addr
}

resource "vault_mount" "pki" {
  path                      = "pki"
  type                      = "pki"
  max_lease_ttl_seconds     = 315360000
  default_lease_ttl_seconds = 259200
}

# An authority of this cluster's own. Where you have one already, mount an intermediate of it instead.
resource "vault_pki_secret_backend_root_cert" "pki" {
  backend     = vault_mount.pki.path
  type        = "internal"
  common_name = "modal_nomad web endpoints"
  ttl         = 315360000
}

module "vault" {
  source     = "../../modules/vault"
  nomad_addr = var.nomad_addr
  pki_mount  = vault_mount.pki.path
  domain     = var.domain

  depends_on = [vault_pki_secret_backend_root_cert.pki]
}

module "dispatcher" {
  source               = "../../modules/dispatcher"
  package              = var.package
  program              = var.program
  python               = var.python
  port                 = var.dispatcher_port
  data_dir             = var.data_dir
  web_domain           = var.domain
  web_url              = "https://{label}.${var.domain}:${var.gateway_port}"
  web_consul           = true
  gateway_token        = var.gateway_token
  vault_addr           = var.vault_addr
  vault_role           = module.vault.dispatcher_role
  vault_container_role = module.vault.container_role
}

module "gateway" {
  source           = "../../modules/gateway"
  package          = var.package
  program          = var.program
  python           = var.python
  gateways         = var.gateways
  port             = var.gateway_port
  dispatchers      = ["http://${var.node_addr}:${var.dispatcher_port}"]
  gateway_token    = var.gateway_token
  domain           = var.domain
  service_provider = "consul"
  consul_addr      = var.consul_addr
  vault_addr       = var.vault_addr
  vault_role       = module.vault.gateway_role
  pki_role         = module.vault.pki_role

  depends_on = [module.dispatcher]
}

module "image_builder" {
  source     = "../../modules/image-builder"
  server_url = "http://${var.node_addr}:${var.dispatcher_port}"
  python     = var.python
}

# One for each App whose endpoints are in Consul's service mesh.
module "intentions" {
  source = "../../modules/consul-intentions"
  labels = var.labels
}
