"""What ``import modal`` finds where Modal's own client is not installed: modal_nomad, submodules included.

A module, not a package: Modal's client is the package ``modal/``, so that an environment that has both keeps
every file of both, and plain Python goes on importing the client there.
"""

from __future__ import annotations

import sys

import modal_nomad
from modal_nomad import _alias

if __name__ == "__main__":
    from modal_nomad.cli import main

    # Apps without a name are described by their command.
    sys.argv[0] = "modal"
    main()
else:
    _alias.install()
    # The import system gives what stands here in the end.
    sys.modules[__name__] = modal_nomad
