"""What stands in for click where an Image has none: uvicorn imports it for a command line that nobody uses.

The real one asks for a newer Python than containers may have, and costs a container's start. This file is
packed as ``click`` into the bundle for web Functions, and imported from nowhere here.
"""


def style(text, **ignored):  # type: ignore[no-untyped-def]
    """Return the text: a container's log has no colours."""
    return str(text)


def echo(message="", **ignored):  # type: ignore[no-untyped-def]
    """Print a line."""
    print(message)


class _Anything:
    """Takes every call and decorates nothing."""

    def __call__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return self


def __getattr__(name):  # type: ignore[no-untyped-def]
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything()
