"""What runs inside a container. ``python -m modal_nomad.worker`` or ``main()`` in a forked process."""


def main() -> int:
    """Be one container: take its settings from the environment, return its exit code.

    Nothing is imported and no state is made before this is called, so a warm interpreter may fork
    first and call it in each child.
    """
    import os
    import sys

    from ._runner import Runner
    from ._session import Settings

    version = str(getattr(sys.modules["modal_nomad"], "__version__", ""))
    try:
        settings = Settings(os.environ)
    except KeyError as missing:
        sys.stderr.write(
            f"modal-nomad worker: {missing.args[0]} is not set; containers are started by the engine, "
            "not by hand\n"
        )
        return 2
    return Runner(settings, version).run()
