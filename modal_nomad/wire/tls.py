"""Whom to trust behind ``https://``: the system's authorities, and one of your own by ``MODAL_CA_BUNDLE``."""

import os
import ssl


def client_context() -> ssl.SSLContext:
    """Return the context of a connection to a dispatcher: its certificate and name are always checked.

    Raises:
        ValueError: ``MODAL_CA_BUNDLE`` names no readable file of certificates.
    """
    context = ssl.create_default_context()
    own = os.environ.get("MODAL_CA_BUNDLE")
    if own:
        try:
            context.load_verify_locations(own)
        except OSError as error:
            raise ValueError(
                f"MODAL_CA_BUNDLE={own} cannot be used: {error}; name a file of PEM certificates"
            ) from error
    return context
