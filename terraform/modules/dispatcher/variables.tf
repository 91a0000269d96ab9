variable "package" {
  type        = string
  default     = "modal-nomad"
  description = "What pip installs."
}

variable "datacenters" {
  type        = list(string)
  default     = ["*"]
  description = "Where the dispatcher and containers may run."
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
  description = "Nomad task driver of the dispatcher and of containers."
}

variable "python" {
  type        = string
  default     = "python3"
  description = "The nodes' interpreter."
}

variable "port" {
  type        = number
  default     = 8520
  description = "Port that clients and containers dial."
}

variable "data_dir" {
  type        = string
  default     = "/var/lib/modal-nomad"
  description = "Folder on the node for the store and the blobs."
}

variable "server_url" {
  type        = string
  default     = ""
  description = "Address that containers dial, where it is another than the allocation's."
}

variable "auth" {
  type        = string
  default     = "nomad"
  description = "Who may call: nomad, token or none."
}

variable "deployer_namespaces" {
  type        = list(string)
  default     = ["default"]
  description = "Nomad namespaces that the policy modal-deployer lets Apps be deployed in, where auth is nomad."
}

variable "nomad_addr" {
  type        = string
  default     = ""
  description = "Nomad's address; empty is the task API's socket."
}

variable "tls_cert" {
  type        = string
  default     = ""
  description = "File on the node with a certificate and its chain."
}

variable "tls_key" {
  type        = string
  default     = ""
  description = "File on the node with its key."
}

variable "cpu" {
  type        = number
  default     = 500
  description = "MHz."
}

variable "memory" {
  type        = number
  default     = 512
  description = "MiB."
}

variable "web_domain" {
  type        = string
  default     = ""
  description = "What the host names of web endpoints end in; empty serves none."
}

variable "web_url" {
  type        = string
  default     = ""
  description = "How the URLs of endpoints begin as users see them."
}

variable "web_consul" {
  type        = bool
  default     = false
  description = "Whether the jobs of web Functions register Consul services."
}

variable "gateway_token" {
  type        = string
  default     = ""
  sensitive   = true
  description = "What gateways prove themselves with, where web_domain is given."
}

variable "program" {
  type        = string
  default     = ""
  description = "A modal-nomad that nodes have already; nothing is installed then."
}

variable "vault_addr" {
  type        = string
  default     = ""
  description = "Vault or OpenBao, where Secrets are kept."
}

variable "vault_role" {
  type        = string
  default     = ""
  description = "The role that the job logs in to Vault with; empty: settings name a token."
}

variable "vault_container_role" {
  type        = string
  default     = ""
  description = "The role that containers log in with; empty is Nomad's default one."
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
