"""``python -m modal_nomad`` is the ``modal-nomad`` command."""

from __future__ import annotations

from modal_nomad.cli import main

if __name__ == "__main__":
    main()
