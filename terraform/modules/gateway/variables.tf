variable "gateway_token" {
  type        = string
  sensitive   = true
  description = "What gateways prove themselves with: 16 characters or more, as in the dispatcher's [web] settings."

  validation {
    condition     = length(var.gateway_token) >= 16
    error_message = "gateway_token is shorter than 16: `openssl rand -hex 32` makes one."
  }
}

variable "dispatchers" {
  type        = list(string)
  description = "Addresses of the dispatcher at work and of its standbys."
}

variable "package" {
  type        = string
  default     = "modal-nomad"
  description = "What pip installs."
}

variable "datacenters" {
  type        = list(string)
  default     = ["*"]
  description = "Where gateways may run."
}

variable "namespace" {
  type        = string
  default     = "default"
  description = "Nomad namespace of the job."
}

variable "node_pool" {
  type        = string
  default     = "default"
  description = "Nomad node pool."
}

variable "driver" {
  type        = string
  default     = "raw_exec"
  description = "Nomad task driver."
}

variable "python" {
  type        = string
  default     = "python3"
  description = "The nodes' interpreter."
}

variable "gateways" {
  type        = number
  default     = 2
  description = "How many, each on a node of its own."
}

variable "processes" {
  type        = number
  default     = 1
  description = "Processes of each that share its port."
}

variable "port" {
  type        = number
  default     = 8080
  description = "Port that endpoints are served at."
}

variable "domain" {
  type        = string
  default     = "localhost"
  description = "What the host names of endpoints end in."
}

variable "service_provider" {
  type        = string
  default     = "nomad"
  description = "Where gateways register themselves: nomad or consul."
}

variable "consul_addr" {
  type        = string
  default     = ""
  description = "Consul's agent on each node; empty: containers are known from the dispatcher alone."
}

variable "tls_cert" {
  type        = string
  default     = ""
  description = "File on the nodes with a certificate and its chain."
}

variable "tls_key" {
  type        = string
  default     = ""
  description = "File on the nodes with its key."
}

variable "cpu" {
  type        = number
  default     = 500
  description = "MHz of each gateway."
}

variable "memory" {
  type        = number
  default     = 256
  description = "MiB of each gateway."
}

variable "program" {
  type        = string
  default     = ""
  description = "A modal-nomad that nodes have already; nothing is installed then."
}

variable "vault_addr" {
  type        = string
  default     = ""
  description = "Vault or OpenBao, where pki_role is given."
}

variable "vault_role" {
  type        = string
  default     = ""
  description = "The role that the job logs in to Vault with; empty: settings name a token."
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
  description = "Settings that have no variable here, as in the configuration file (TOML). No secrets: they are secret_settings."
}

variable "secret_settings" {
  type        = string
  default     = ""
  sensitive   = true
  description = "The same, kept in the job's Nomad variable."
}
