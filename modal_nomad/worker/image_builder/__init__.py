"""Builds the layers of container images with docker, podman or buildah, where such a program is.

The dispatcher runs it on its own machine, or a Nomad job on a node: ``python -m
modal_nomad.worker.image_builder`` reads a plan, one JSON object, from its standard input, and writes what
happens to its standard output, one JSON object a line.
"""
