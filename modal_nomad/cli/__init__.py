"""The ``modal-nomad`` command. Each command group is a module of its own, imported when it is used."""

from __future__ import annotations

from modal_nomad.cli._root import main

__all__ = ["main"]
