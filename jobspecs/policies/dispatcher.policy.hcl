# What the dispatcher itself may do, in each namespace it serves. Jobs are registered under the caller's
# token; this one dispatches containers of them, watches, stops, and reads logs.
namespace "*" {
  capabilities = [
    "list-jobs",
    "read-job",
    "submit-job",
    "dispatch-job",
    "alloc-lifecycle",
    "read-logs",
    "read-fs",
    "alloc-exec",
    "alloc-node-exec",
  ]
}

# The cluster's cores decide how many containers a Function may have by default.
node {
  policy = "read"
}
