output "container_role" {
  description = "For vault_container_role of the dispatcher."
  value       = vault_jwt_auth_backend_role.modal["modal-containers"].role_name
}

output "dispatcher_role" {
  description = "For vault_role of the dispatcher."
  value       = vault_jwt_auth_backend_role.modal["modal-dispatcher"].role_name
}

output "gateway_role" {
  description = "For vault_role of the gateways; empty without pki_mount."
  value       = var.pki_mount == "" ? "" : vault_jwt_auth_backend_role.modal["modal-gateway"].role_name
}

output "pki_role" {
  description = "For pki_role of the gateways; empty without pki_mount."
  value       = var.pki_mount == "" ? "" : vault_pki_secret_backend_role.gateway[0].name
}

output "image_builder_role" {
  description = "Of the job that builds images; empty without image_secrets."
  value       = var.image_secrets ? vault_jwt_auth_backend_role.modal["modal-image-builder"].role_name : ""
}
