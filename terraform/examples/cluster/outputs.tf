output "server_url" {
  description = "For MODAL_SERVER_URL."
  value       = "http://${var.node_addr}:${var.dispatcher_port}"
}
