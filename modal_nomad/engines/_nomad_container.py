"""The record of one container on a cluster, and how Nomad's errors are said as an engine's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from modal_nomad.engines.base import ContainerEvent, EngineDenied, EngineError, EngineUnavailable
from modal_nomad.hashicorp.nomad import NomadDenied, NomadError, NomadUnavailable

_NO_POOL = "in nonexistent node pool"


@dataclass
class NomadContainer:
    """What is known of one container."""

    event: ContainerEvent
    namespace: str
    child: str = ""
    task: str = ""
    gpu: str = ""
    index: int = 0
    dispatched: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.contextmanager
def engine_errors(needs: str = "", namespace: str = "") -> Iterator[None]:
    """Say what Nomad's client raises as an engine's errors.

    Args:
        needs: the capability that a refused token lacks; empty for Nomad's own words.
        namespace: where it lacks it.
    """
    try:
        yield
    except NomadDenied as error:
        text = f"Permission denied: the Nomad token needs {needs} in namespace {namespace!r}"
        raise EngineDenied(text if needs else str(error)) from error
    except NomadUnavailable as error:
        raise EngineUnavailable(str(error)) from error
    except NomadError as error:
        raise EngineError(_remedied(str(error))) from error


def _remedied(text: str) -> str:
    if _NO_POOL in text:
        return f"{text}: make it (`nomad node pool apply`), or name another as node_pool="
    return text
