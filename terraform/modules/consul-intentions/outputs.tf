output "services" {
  description = "The services that have intentions now."
  value       = keys(consul_config_entry.endpoint)
}
