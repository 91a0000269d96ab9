# Who deploys and runs Apps: the jobs of Functions are registered under this token.
namespace "default" {
  capabilities = ["list-jobs", "read-job", "submit-job", "read-logs"]
}
