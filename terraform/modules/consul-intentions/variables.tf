variable "labels" {
  type        = list(string)
  description = "Labels of the App's endpoints, which are the names of their Consul services."
}

variable "allowed" {
  type        = list(string)
  default     = ["modal-gateway"]
  description = "Consul services that may come to them; no other may."
}
