# Builds container images on a cluster: a batch job that the dispatcher dispatches once for each image.
#
#   nomad job run -var server_url=http://dispatcher.example.org:8520 jobspecs/image-builder.nomad.hcl
#
# A node that takes it needs python3 (3.9 or newer) and docker, podman or buildah, whichever `builder` under
# [images] of the dispatcher's settings names ("docker" when it names none). The images are pushed to
# `repository` there, which those nodes must reach. docs/images.md explains all of it.

variable "server_url" {
  type        = string
  description = "The dispatcher's address, as nodes reach it."
}

variable "name" {
  type        = string
  default     = "image-builder"
  description = "The job's name; `job` under [images] of the dispatcher's settings."
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "namespace" {
  type        = string
  default     = "default"
  description = "The namespace of the dispatcher's [render] settings."
}

variable "node_pool" {
  type    = string
  default = "default"
}

variable "driver" {
  type        = string
  default     = "raw_exec"
  description = "raw_exec: the program that builds is the node's."
}

variable "python" {
  type        = string
  default     = "python3"
  description = "The node's interpreter."
}

variable "docker_host" {
  type        = string
  default     = ""
  description = "Where docker's daemon is, when it is not at its usual place."
}

variable "vault_role" {
  type        = string
  default     = ""
  description = "The role that the job reads the Secrets of builds under; without one the dispatcher reads them for it."
}

variable "cpu" {
  type    = number
  default = 1000
}

variable "memory" {
  type        = number
  default     = 512
  description = "Of the builder itself; docker's daemon has its own."
}

job "image-builder" {
  id          = var.name
  name        = var.name
  type        = "batch"
  namespace   = var.namespace
  datacenters = var.datacenters
  node_pool   = var.node_pool

  parameterized {
    payload       = "forbidden"
    meta_required = ["modal_build"]
    # Where the Secrets of the build are; their values are nowhere but in secrets/ of its allocation.
    meta_optional = var.vault_role == "" ? [] : ["modal_secrets"]
  }

  group "builder" {
    # The dispatcher says it again: a build that failed half way is not repeated behind its back.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "builder" {
      driver = var.driver
      # It ends the containers of its build first.
      kill_timeout = "30s"

      config {
        command = var.python
        args    = ["${NOMAD_TASK_DIR}/runtime/modal_nomad/worker/image_builder/on_a_node.py"]
      }

      # Always that of the dispatcher as it runs now.
      artifact {
        source      = "${var.server_url}/artifacts/runtime.zip"
        destination = "local/runtime"
        mode        = "dir"
      }

      # How the dispatcher knows that it is this job who asks for the plan.
      identity {
        name = "modal"
        aud  = ["modal-nomad"]
        file = true
      }

      dynamic "vault" {
        for_each = var.vault_role == "" ? [] : [var.vault_role]
        content {
          role         = vault.value
          env          = false
          disable_file = true
          change_mode  = "noop"
        }
      }

      dynamic "template" {
        for_each = var.vault_role == "" ? [] : [var.vault_role]
        content {
          destination = "secrets/modal_secrets.json"
          change_mode = "noop"
          data        = <<-EOT
            [{{ range $at, $one := (env "NOMAD_META_modal_secrets" | parseJSON) }}{{ if $at }},{{ end }}
            {{ with secret $one.path }}{{ if $one.leased -}}
            {"values": {{ .Data | toJSON }}, "lease": {{ .LeaseID | toJSON }}}
            {{- else -}}
            {"values": {{ .Data.data | toJSON }}}
            {{- end }}{{ end }}{{ end }}
            ]
          EOT
        }
      }

      env {
        MODAL_SECRETS_FILE      = "${NOMAD_SECRETS_DIR}/modal_secrets.json"
        MODAL_SERVER_URL        = var.server_url
        MODAL_BUILD             = "${NOMAD_META_modal_build}"
        MODAL_WORKER_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/nomad_modal.jwt"
        DOCKER_HOST             = var.docker_host
      }

      resources {
        cpu    = var.cpu
        memory = var.memory
      }
    }
  }
}
