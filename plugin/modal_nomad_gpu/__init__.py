"""A Nomad device plugin for NVIDIA GPUs: real health, MIG instances, and slices of a card.

Nomad starts the program ``modal-nomad-gpu`` from its ``plugin_dir`` and speaks gRPC with it.
"""

__version__ = "0.1.0"
NAME = "modal-nomad-gpu"
