variable "nomad_addr" {
  type        = string
  description = "Nomad's address as Vault reaches it: its keys are fetched there."
}

variable "nomad_ca" {
  type        = string
  default     = ""
  description = "PEM of the authority of Nomad's certificate, where the system does not know it."
}

variable "auth_path" {
  type        = string
  default     = "jwt-nomad"
  description = "Where Nomad's workloads log in: jwt_auth_backend_path in the vault block of its agents."
}

variable "audience" {
  type        = string
  default     = "vault.io"
  description = "As in default_identity of that block."
}

variable "mount" {
  type        = string
  default     = "secret"
  description = "The KV version 2 engine with the Secrets; it must be there."
}

variable "prefix" {
  type        = string
  default     = "modal"
  description = "The folder in it."
}

variable "namespace" {
  type        = string
  default     = "default"
  description = "Nomad namespace of the dispatcher's and the gateways' jobs."
}

variable "pki_mount" {
  type        = string
  default     = ""
  description = "The PKI engine that the gateways' certificates come from; it must be there. Empty: none."
}

variable "domain" {
  type        = string
  default     = ""
  description = "What the host names of endpoints end in, where pki_mount is given."
}

variable "custom_domains" {
  type        = list(string)
  default     = []
  description = "Custom domains of endpoints that may get certificates, too."
}

variable "certificate_ttl" {
  type        = number
  default     = 259200
  description = "Seconds that a certificate is good for."
}

variable "image_secrets" {
  type        = bool
  default     = false
  description = "Whether there is a role modal-image-builder, for the steps of image builds that use Secrets."
}

variable "image_builder_job" {
  type        = string
  default     = "image-builder"
  description = "The Nomad job that builds images."
}

variable "image_builder_namespace" {
  type        = string
  default     = "default"
  description = "The namespace of that job."
}
