"""Volumes: what crosses processes of a tree of files. Standard library only, as all that containers load."""
