"""What has a name in an environment: Dicts, Queues, Secrets, Volumes, and the environments themselves."""
