"""Requests about the items of Queues."""
