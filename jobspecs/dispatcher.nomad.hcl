# The modal_nomad dispatcher as a Nomad service job.
#
#   nomad job run -var package=modal-nomad jobspecs/dispatcher.nomad.hcl
#
# On a development agent without ACLs add -var auth=none -var data_dir=/tmp/modal-nomad.
#
# A node needs python3 (3.10 or newer, with venv) and the raw_exec driver. With ACLs on, give the job's
# own workload identity its policy:
#
#   nomad acl policy apply -namespace default -job modal-dispatcher modal-dispatcher \
#     jobspecs/policies/dispatcher.policy.hcl
#
# docs/nomad.md explains all of it.

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

variable "port" {
  type        = number
  default     = 8520
  description = "Static port that clients and containers dial."
}

variable "data_dir" {
  type        = string
  default     = "/var/lib/modal-nomad"
  description = "Folder on the node for the store and the blobs; it outlives the allocation."
}

variable "server_url" {
  type        = string
  default     = ""
  description = "Address that containers dial; empty is this allocation's own address and port."
}

variable "auth" {
  type        = string
  default     = "nomad"
  description = "Who may call: nomad (ACL tokens; everybody where ACLs are off), token, or none."
}

variable "nomad_addr" {
  type        = string
  default     = ""
  description = "Nomad's address; empty is the task API's Unix socket, which needs no TLS set-up."
}

variable "tls_cert" {
  type        = string
  default     = ""
  description = "File on the node with the dispatcher's certificate and chain (PEM); empty serves plain HTTP."
}

variable "tls_key" {
  type        = string
  default     = ""
  description = "File on the node with its key (PEM)."
}

variable "web_domain" {
  type        = string
  default     = ""
  description = "What the host names of web endpoints end in; empty serves none. Gateways serve them (jobspecs/gateway.nomad.hcl)."
}

variable "web_url" {
  type        = string
  default     = ""
  description = "How the URLs of endpoints begin as users see them: https://{label}.modal.example.com."
}

variable "web_consul" {
  type        = bool
  default     = false
  description = "Whether the jobs of web Functions register Consul services."
}

variable "vault_addr" {
  type        = string
  default     = ""
  description = "Vault or OpenBao, where Secrets are kept; empty: there are none."
}

variable "vault_role" {
  type        = string
  default     = ""
  description = "The role that the dispatcher itself logs in to Vault with; empty: no vault block, and settings name a token."
}

variable "vault_container_role" {
  type        = string
  default     = ""
  description = "The role that containers log in with; empty is Nomad's default one."
}

variable "settings" {
  type        = string
  default     = ""
  description = "Settings of the dispatcher that have no variable here, as in its file (TOML, a Nomad template). What it says counts."
}

variable "cpu" {
  type    = number
  default = 500
}

variable "memory" {
  type    = number
  default = 512
}

job "modal-dispatcher" {
  type        = "service"
  namespace   = var.namespace
  datacenters = var.datacenters
  node_pool   = var.node_pool

  group "dispatcher" {
    count = 1

    # Two dispatchers on one store would both lease its inputs: the old one goes first.
    update {
      max_parallel     = 1
      canary           = 0
      min_healthy_time = "3s"
      healthy_deadline = "5m"
    }

    # Containers and callers wait for it: Nomad's own 15 seconds are long.
    restart {
      attempts = 10
      interval = "5m"
      delay    = "1s"
      mode     = "delay"
    }

    network {
      port "api" {
        static = var.port
      }
    }

    service {
      name     = "modal-dispatcher"
      port     = "api"
      provider = "nomad"

      check {
        type     = "http"
        path     = "/healthz"
        protocol = var.tls_cert != "" ? "https" : "http"
        # The check dials an address; the certificate may bear a name only.
        tls_skip_verify = var.tls_cert != ""
        interval        = "5s"
        timeout         = "2s"
      }
    }

    task "dispatcher" {
      driver       = var.driver
      kill_signal  = "SIGTERM"
      kill_timeout = "20s"

      config {
        command = "/bin/sh"
        args    = ["${NOMAD_TASK_DIR}/start.sh"]
      }

      # NOMAD_TOKEN for the task API; rights come from the policy attached to this job.
      identity {
        env  = true
        file = true
      }

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
          configs="--config $NOMAD_SECRETS_DIR/dispatcher.toml --config $NOMAD_SECRETS_DIR/settings.toml"
          if [ -n "$PROGRAM" ]; then
            exec "$PROGRAM" dispatcher $configs
          fi
          venv="$NOMAD_TASK_DIR/venv"
          if [ ! -f "$venv/ready" ]; then
            "$PYTHON" -m venv --clear "$venv"
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$PACKAGE"
            touch "$venv/ready"
          fi
          exec "$venv/bin/modal-nomad" dispatcher $configs
        EOT
      }

      template {
        destination = "secrets/dispatcher.toml"
        data        = <<-EOT
          engine = "nomad"
          auth = "${var.auth}"
          home = "${var.data_dir}"
          listen = "${var.tls_cert != "" ? "https" : "http"}://{{ env "NOMAD_ADDR_api" }}"
          tls_cert = "${var.tls_cert}"
          tls_key = "${var.tls_key}"
          advertise = "${var.server_url}"

          [nomad]
          address = "${var.nomad_addr != "" ? var.nomad_addr : "unix://{{ env \"NOMAD_SECRETS_DIR\" }}/api.sock"}"
          token_file = "{{ env "NOMAD_SECRETS_DIR" }}/nomad_token"

          %{~if var.vault_addr != ""~}

          [vault]
          address = "${var.vault_addr}"
          role = "${var.vault_container_role}"
          %{~if var.vault_role != ""~}
          token_file = "{{ env "NOMAD_SECRETS_DIR" }}/vault_token"
          %{~endif~}
          %{~endif~}

          %{~if var.web_domain != ""~}

          [web]
          domain = "${var.web_domain}"
          url = "${var.web_url}"
          consul = ${var.web_consul}
          {{- if nomadVarExists "nomad/jobs/modal-dispatcher" }}{{ with nomadVar "nomad/jobs/modal-dispatcher" }}
          gateway_token = "{{ .gateway_token }}"
          {{- end }}{{ end }}
          %{~endif~}

          [render]
          namespace = "${var.namespace}"
          node_pool = "${var.node_pool}"
          datacenters = ${jsonencode(var.datacenters)}
          driver = "${var.driver}"
          python = "${var.python}"
        EOT
      }

      # What the variable of the job says comes last: passwords and keys are to stand there.
      template {
        destination = "secrets/settings.toml"
        data        = <<-EOT
          ${indent(10, var.settings)}
          {{ if nomadVarExists "nomad/jobs/modal-dispatcher" }}{{ with nomadVar "nomad/jobs/modal-dispatcher" }}{{ .settings }}{{ end }}{{ end }}
        EOT
      }

      resources {
        cpu    = var.cpu
        memory = var.memory
      }
    }
  }
}
