# The dispatcher: its job, and the rights of the job's own identity.

terraform {
  required_version = ">= 1.5"
  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.0"
    }
  }
}

resource "nomad_acl_policy" "dispatcher" {
  count       = var.auth == "nomad" ? 1 : 0
  name        = "modal-dispatcher"
  description = "What the modal_nomad dispatcher may do."
  rules_hcl   = file("${path.module}/../../../jobspecs/policies/dispatcher.policy.hcl")

  job_acl {
    namespace = var.namespace
    job_id    = "modal-dispatcher"
  }
}

# Who deploys and runs Apps gets a token with this policy.
resource "nomad_acl_policy" "deployer" {
  count       = var.auth == "nomad" ? 1 : 0
  name        = "modal-deployer"
  description = "Deploys and runs Apps of modal_nomad."
  rules_hcl = join("\n", [
    for namespace in var.deployer_namespaces :
    replace(file("${path.module}/../../../jobspecs/policies/deployer.policy.hcl"), "\"default\"", jsonencode(namespace))
  ])
}

resource "nomad_variable" "secrets" {
  path      = "nomad/jobs/modal-dispatcher"
  namespace = var.namespace
  items = {
    gateway_token = var.gateway_token
    settings      = var.secret_settings
  }
}

resource "nomad_job" "dispatcher" {
  jobspec = file("${path.module}/../../../jobspecs/dispatcher.nomad.hcl")

  hcl2 {
    vars = {
      package              = var.package
      program              = var.program
      datacenters          = jsonencode(var.datacenters)
      namespace            = var.namespace
      node_pool            = var.node_pool
      driver               = var.driver
      python               = var.python
      port                 = var.port
      data_dir             = var.data_dir
      server_url           = var.server_url
      auth                 = var.auth
      nomad_addr           = var.nomad_addr
      tls_cert             = var.tls_cert
      tls_key              = var.tls_key
      web_domain           = var.web_domain
      web_url              = var.web_url
      web_consul           = var.web_consul
      vault_addr           = var.vault_addr
      vault_role           = var.vault_role
      vault_container_role = var.vault_container_role
      settings             = var.settings
      cpu                  = var.cpu
      memory               = var.memory
    }
  }

  depends_on = [nomad_acl_policy.dispatcher, nomad_variable.secrets]
}
