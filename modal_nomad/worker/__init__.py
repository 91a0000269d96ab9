"""What runs inside a container. ``python -m modal_nomad.worker`` or ``main()`` in a forked process."""


def report(error: BaseException) -> None:
    """Tell the dispatcher why this container cannot start, so that callers get it as their exception.

    The container's log has it as well; when there is no dispatcher to tell, that has to do.
    """
    import os
    import sys

    from ._outbox import pack
    from ._session import Gone, Refused, Session, Settings

    try:
        session = Session(Settings(os.environ), str(getattr(sys.modules["modal_nomad"], "__version__", "")))
        session.connect()
    except (KeyError, OSError, Refused, Gone) as failure:
        sys.stderr.write(f"modal-nomad worker: the dispatcher cannot be told: {failure}\n")
        return
    # Where in our own code it was raised says nothing to the caller.
    error = error.with_traceback(None)
    error.__cause__ = error.__context__ = None
    session.send({"t": "init_failed"}, [pack(error)])
    session.close()


def leave_network() -> bool:
    """Leave the network, where this container is to; False when it could not, which callers are told."""
    import os
    import sys

    from ._network import NetworkNotBlocked, leave

    try:
        leave(os.environ)
    except NetworkNotBlocked as error:
        from ..exception import ExecutionError

        sys.stderr.write(f"modal-nomad worker: {error}\n")
        report(ExecutionError(str(error)))
        return False
    return True


def main() -> int:
    """Be one container: take its settings from the environment, return its exit code.

    Nothing is imported and no state is made before this is called, so a warm interpreter may fork
    first and call it in each child.
    """
    import os
    import sys

    if os.environ.get("MODAL_CPU_LIMIT") or os.environ.get("MODAL_MEMORY_LIMIT"):
        from ._limits import apply

        apply(os.environ)
    if os.environ.get("MODAL_BLOCK_NETWORK") and not leave_network():
        return 1
    if os.environ.get("MODAL_I6PN"):
        from ._i6pn import answer_for, own_address

        answer_for(own_address(os.environ["MODAL_I6PN"]))
    if os.environ.get("MODAL_SNAPSHOT"):
        from ._stand_in import restore

        code = restore(os.environ["MODAL_SNAPSHOT"])
        if code is not None:
            return code

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
    runner = Runner(settings, version)
    code = runner.run()
    if runner.parks:
        runner.park()
    return code
