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

variable "cpu" {
  type    = number
  default = 500
}

variable "memory" {
  type    = number
  default = 256
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

    # Out of the load balancer before requests are turned away.
    shutdown_delay = "5s"

    network {
      port "web" {
        static = var.port
      }
      port "peer" {}
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

      env {
        PACKAGE = var.package
        PYTHON  = var.python
      }

      template {
        destination = "local/start.sh"
        perms       = "755"
        data        = <<-EOT
          set -eu
          venv="$NOMAD_TASK_DIR/venv"
          if [ ! -f "$venv/ready" ]; then
            "$PYTHON" -m venv --clear "$venv"
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$PACKAGE"
            touch "$venv/ready"
          fi
          exec "$venv/bin/modal-nomad" gateway --config "$NOMAD_SECRETS_DIR/gateway.toml"
        EOT
      }

      template {
        destination = "secrets/gateway.toml"
        perms       = "600"
        data        = <<-EOT
          listen = "${var.tls_cert != "" ? "https" : "http"}://{{ env "NOMAD_ADDR_web" }}"
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
