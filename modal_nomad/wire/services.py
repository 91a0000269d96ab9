"""What the jobs of Functions register in Consul, as those who read it find it."""

TAG = "modal-nomad"
"""All services of web endpoints have this tag."""
HEALTH = b"/.well-known/modal-nomad/health"
"""Answered by a container itself, to anybody: 200 while it takes requests, 503 when it no longer does."""
