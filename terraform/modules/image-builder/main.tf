# The batch job that builds container images on the cluster; the dispatcher dispatches it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.0"
    }
  }
}

resource "nomad_job" "builder" {
  jobspec = file("${path.module}/../../../jobspecs/image-builder.nomad.hcl")

  hcl2 {
    vars = {
      server_url  = var.server_url
      name        = var.name
      datacenters = jsonencode(var.datacenters)
      namespace   = var.namespace
      node_pool   = var.node_pool
      driver      = var.driver
      python      = var.python
      docker_host = var.docker_host
      vault_role  = var.vault_role
      cpu         = var.cpu
      memory      = var.memory
    }
  }
}
