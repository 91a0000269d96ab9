# Web gateways: the job, and the token that they and the dispatcher share.

terraform {
  required_version = ">= 1.5"
  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.0"
    }
  }
}

resource "nomad_variable" "token" {
  path      = "nomad/jobs/modal-gateway"
  namespace = var.namespace
  items = {
    gateway_token = var.gateway_token
    settings      = var.secret_settings
  }
}

resource "nomad_job" "gateway" {
  jobspec = file("${path.module}/../../../jobspecs/gateway.nomad.hcl")

  hcl2 {
    vars = {
      package      = var.package
      program      = var.program
      datacenters  = jsonencode(var.datacenters)
      namespace    = var.namespace
      node_pool    = var.node_pool
      driver       = var.driver
      python       = var.python
      gateways     = var.gateways
      processes    = var.processes
      port         = var.port
      dispatchers  = jsonencode(var.dispatchers)
      domain       = var.domain
      provider     = var.service_provider
      consul_addr  = var.consul_addr
      tls_cert     = var.tls_cert
      tls_key      = var.tls_key
      vault_addr   = var.vault_addr
      vault_role   = var.vault_role
      pki_role     = var.pki_role
      pki_names    = jsonencode(var.pki_names)
      tunnels      = var.tunnels
      tunnels_port = var.tunnels_port
      settings     = var.settings
      cpu          = var.cpu
      memory       = var.memory
    }
  }

  depends_on = [nomad_variable.token]
}
