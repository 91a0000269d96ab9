# Web gateways of modal_nomad as a Nomad service job: any number of them, without state.
#
#   nomad var put nomad/jobs/modal-gateway gateway_token=$(openssl rand -hex 32)
#   nomad job run -var dispatchers='["http://DISPATCHER:8520"]' jobspecs/gateway.nomad.hcl
#
# The dispatcher's [web] settings have the same gateway_token. docs/gateway.md explains all of it.

variable "package" {
  type        = string
  default     = "modal-nomad"
  description = "What pip installs: a requirement, a path on the node or a URL."
}

variable "program" {
  type        = string
  default     = ""
  description = "A modal-nomad that nodes have already, as /opt/modal-nomad/bin/modal-nomad; nothing is installed then."
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "node_pool" {
  type    = string
  default = "default"
}

variable "driver" {
  type        = string
  default     = "raw_exec"
  description = "raw_exec, or exec where the chroot has python3."
}

variable "python" {
  type        = string
  default     = "python3"
  description = "The node's interpreter."
}

variable "gateways" {
  type        = number
  default     = 2
  description = "How many of them, each on a node of its own."
}

variable "processes" {
  type        = number
  default     = 1
  description = "Processes of each that share its port."
}

variable "port" {
  type        = number
  default     = 8080
  description = "Static port that endpoints are served at."
}

variable "dispatchers" {
  type        = list(string)
  description = "Addresses of the dispatcher at work and of its standbys."
}

variable "domain" {
  type        = string
  default     = "localhost"
  description = "What the host names of endpoints end in, as in the dispatcher's [web] settings."
}

variable "provider" {
  type        = string
  default     = "nomad"
  description = "Where the gateways register themselves: nomad or consul."
}

variable "consul_addr" {
  type        = string
  default     = ""
  description = "Consul's agent on each node, such as http://127.0.0.1:8500; empty: containers are known from the dispatcher alone."
}

variable "tls_cert" {
  type        = string
  default     = ""
  description = "File on the node with a certificate and its chain (PEM); empty serves plain HTTP."
}

variable "tls_key" {
  type        = string
  default     = ""
  description = "File on the node with its key (PEM)."
}

variable "vault_addr" {
  type        = string
  default     = ""
  description = "Vault or OpenBao, where pki_role is given."
}

variable "vault_role" {
  type        = string
  default     = ""
  description = "The role that the gateways log in to Vault with; empty: no vault block, and settings name a token."
}

variable "pki_role" {
  type        = string
  default     = ""
  description = "The role of Vault's PKI engine that issues the gateways' certificates; empty: none does."
}

variable "pki_names" {
  type        = list(string)
  default     = []
  description = "What the certificate is for; empty is every name below domain."
}

variable "tunnels" {
  type        = bool
  default     = false
  description = "Whether they carry tunnels: with a certificate, and gateways = true in the dispatcher's [tunnels] settings."
}

variable "tunnels_port" {
  type        = number
  default     = 0
  description = "Static port of all tunnels that are told apart by host name; 0: each has a port of its own."
}

variable "settings" {
  type        = string
  default     = ""
  description = "Settings of the gateways that have no variable here, as in their file (TOML, a Nomad template). What it says counts."
}

variable "cpu" {
  type    = number
  default = 500
}

variable "memory" {
  type    = number
  default = 256
}

locals {
  scheme    = var.tls_cert != "" || var.pki_role != "" ? "https" : "http"
  pki_names = length(var.pki_names) > 0 ? var.pki_names : ["*.${var.domain}"]
}

job "modal-gateway" {
  type        = "service"
  namespace   = var.namespace
  datacenters = var.datacenters
  node_pool   = var.node_pool

  group "gateway" {
    count = var.gateways

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    update {
      max_parallel     = 1
      min_healthy_time = "5s"
      healthy_deadline = "5m"
    }

    # It has no state: Nomad's own 15 seconds are long.
    restart {
      attempts = 10
      interval = "5m"
      delay    = "1s"
      mode     = "delay"
    }

    # Out of the load balancer before requests are turned away.
    shutdown_delay = "5s"

    network {
      port "web" {
        static = var.port
      }
      port "peer" {}
      port "tunnels" {}

      dynamic "port" {
        for_each = var.tunnels_port != 0 ? [var.tunnels_port] : []
        labels   = ["names"]
        content {
          static = port.value
        }
      }
    }

    service {
      name     = "modal-gateway"
      port     = "web"
      provider = var.provider

      check {
        type     = "tcp"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "gateway" {
      driver       = var.driver
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      # Its token is in the task's secrets, and Nomad renews it there.
      dynamic "vault" {
        for_each = var.vault_role != "" ? [var.vault_role] : []
        content {
          role        = vault.value
          env         = false
          change_mode = "noop"
        }
      }

      env {
        PACKAGE = var.package
        PROGRAM = var.program
        PYTHON  = var.python
      }

      template {
        destination = "local/start.sh"
        perms       = "755"
        data        = <<-EOT
          set -eu
          configs="--config $NOMAD_SECRETS_DIR/gateway.toml --config $NOMAD_SECRETS_DIR/settings.toml"
          if [ -n "$PROGRAM" ]; then
            exec "$PROGRAM" gateway $configs
          fi
          venv="$NOMAD_TASK_DIR/venv"
          if [ ! -f "$venv/ready" ]; then
            "$PYTHON" -m venv --clear "$venv"
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$PACKAGE"
            touch "$venv/ready"
          fi
          exec "$venv/bin/modal-nomad" gateway $configs
        EOT
      }

      template {
        destination = "secrets/gateway.toml"
        data        = <<-EOT
          listen = "${local.scheme}://{{ env "NOMAD_ADDR_web" }}"
          processes = ${var.processes}
          dispatchers = ${jsonencode(var.dispatchers)}
          gateway_token = "{{ with nomadVar "nomad/jobs/modal-gateway" }}{{ .gateway_token }}{{ end }}"
          # Several processes cannot share it: each then takes a free port.
          peer_listen = "http://{{ env "NOMAD_IP_peer" }}:${var.processes == 1 ? "{{ env \"NOMAD_PORT_peer\" }}" : "0"}"
          drain_seconds = 20.0
          domain = "${var.domain}"

          [consul]
          address = "${var.consul_addr}"

          [tls]
          certificates = [${var.tls_cert != "" ? "{ cert = \"${var.tls_cert}\", key = \"${var.tls_key}\" }" : ""}]

          %{~if var.pki_role != ""~}

          [pki]
          address = "${var.vault_addr}"
          role = "${var.pki_role}"
          names = ${jsonencode(local.pki_names)}
          %{~if var.vault_role != ""~}
          token_file = "{{ env "NOMAD_SECRETS_DIR" }}/vault_token"
          %{~endif~}
          %{~endif~}
          %{~if var.tunnels~}

          [tunnels]
          listen = "{{ env "NOMAD_IP_tunnels" }}"
          tls_port = ${var.tunnels_port}
          inside_listen = "http://{{ env "NOMAD_IP_tunnels" }}:${var.processes == 1 ? "{{ env \"NOMAD_PORT_tunnels\" }}" : "0"}"
          %{~endif~}
        EOT
      }

      # What the variable of the job says comes last: passwords and keys are to stand there.
      template {
        destination = "secrets/settings.toml"
        data        = <<-EOT
          ${indent(10, var.settings)}
          {{ if nomadVarExists "nomad/jobs/modal-gateway" }}{{ with nomadVar "nomad/jobs/modal-gateway" }}{{ .settings }}{{ end }}{{ end }}
        EOT
      }

      config {
        command = "/bin/sh"
        args    = ["${NOMAD_TASK_DIR}/start.sh"]
      }

      resources {
        cpu    = var.cpu
        memory = var.memory
      }
    }
  }
}
