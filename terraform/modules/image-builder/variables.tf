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
  type        = list(string)
  default     = ["*"]
  description = "Where images may be built."
}

variable "namespace" {
  type        = string
  default     = "default"
  description = "The namespace of the dispatcher's [render] settings."
}

variable "node_pool" {
  type        = string
  default     = "default"
  description = "Nomad node pool."
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
  description = "The role that the job reads the Secrets of builds under: modal-image-builder of the module vault; without one the dispatcher has to read them."
}

variable "cpu" {
  type        = number
  default     = 1000
  description = "MHz."
}

variable "memory" {
  type        = number
  default     = 512
  description = "MiB of the builder itself; docker's daemon has its own."
}
