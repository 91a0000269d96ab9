"""Volumes as a file system of their own: contents come when they are read (``docs/volumes.md``)."""
