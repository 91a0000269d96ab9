variable "nomad_addr" {
  type        = string
  description = "Nomad's API, as this machine and Vault reach it."
}

variable "consul_addr" {
  type        = string
  description = "Consul's API, as this machine and the nodes reach it."
}

variable "vault_addr" {
  type        = string
  description = "Vault or OpenBao, as this machine and the nodes reach it."
}

variable "node_addr" {
  type        = string
  description = "The address of the node that the dispatcher runs on."
}

variable "gateway_token" {
  type        = string
  sensitive   = true
  description = "What gateways prove themselves with: `openssl rand -hex 32` makes one."
}

variable "domain" {
  type        = string
  description = "What the host names of endpoints end in."
}

variable "package" {
  type        = string
  default     = "modal-nomad"
  description = "What pip installs."
}

variable "program" {
  type        = string
  default     = ""
  description = "A modal-nomad that nodes have already."
}

variable "python" {
  type        = string
  default     = "python3"
  description = "The nodes' interpreter."
}

variable "data_dir" {
  type        = string
  default     = "/var/lib/modal-nomad"
  description = "Folder on the dispatcher's node for the store and the blobs."
}

variable "dispatcher_port" {
  type        = number
  default     = 8520
  description = "Port that clients and containers dial."
}

variable "gateways" {
  type        = number
  default     = 2
  description = "How many, each on a node of its own."
}

variable "gateway_port" {
  type        = number
  default     = 8443
  description = "Port that endpoints are served at."
}

variable "labels" {
  type        = list(string)
  default     = []
  description = "Labels of endpoints that only the gateways may come to, in Consul's service mesh."
}
