output "job_id" {
  description = "The Nomad job."
  value       = nomad_job.dispatcher.id
}
