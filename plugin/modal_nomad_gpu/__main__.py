"""The program ``modal-nomad-gpu``: Nomad starts it from its ``plugin_dir``."""

from __future__ import annotations

import os
import sys

# Who starts the program with this is Nomad: no secret, a guard against starting it by hand.
COOKIE = ("NOMAD_PLUGIN_MAGIC_COOKIE", "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255")
_BY_HAND = """\
modal-nomad-gpu is a device plugin: Nomad starts it, nobody else. Link it into the client's plugin_dir and
name it in the client's configuration (plugin "modal-nomad-gpu" {}); --version shows its version.
"""


def main() -> None:
    """Serve Nomad, or say to who started it by hand what it is for."""
    if sys.argv[1:] == ["--version"]:
        from modal_nomad_gpu import __version__

        print(__version__)
        return
    if os.environ.get(COOKIE[0]) != COOKIE[1]:
        sys.stderr.write(_BY_HAND)
        raise SystemExit(1)
    # gRPC's own notes would stand in Nomad's log as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from modal_nomad_gpu._server import serve

    serve()


if __name__ == "__main__":
    main()
