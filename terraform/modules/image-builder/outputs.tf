output "job_id" {
  description = "The Nomad job: `job` under [images] of the dispatcher's settings."
  value       = nomad_job.builder.id
}
