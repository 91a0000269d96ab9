"""A Function's containers as its caller sees them: how many there are, and how many there should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._bridge import blocking, io

if TYPE_CHECKING:
    from .client import Client


@dataclass(frozen=True)
class FunctionStats:
    """A Function's queue and containers at one moment.

    Attributes:
        backlog: inputs that wait: for a container, for a free slot, or for their next attempt.
        num_total_runners: containers that are up.
        num_running_inputs: inputs that run now.
        input_headroom: further inputs that the containers that are up would start at once.
    """

    backlog: int
    num_total_runners: int
    num_running_inputs: int = 0
    input_headroom: int = 0


@dataclass(frozen=True)
class FunctionAutoscalerSettings:
    """What a Function's autoscaler goes by.

    Attributes:
        min_containers: containers that are kept warm.
        max_containers: the most there may be; None leaves it to the server.
        buffer_containers: idle containers kept beside busy ones.
        scaledown_window: seconds that an idle container lives.
    """

    min_containers: int
    max_containers: int | None
    buffer_containers: int
    scaledown_window: float


async def current_stats(client: Client, function_id: str) -> FunctionStats:
    """Ask for a Function's queue and containers.

    Raises:
        NotFoundError: the Function's App was stopped.
    """
    return FunctionStats(**await io(client._request("function.stats", {"function_id": function_id})))


async def update_autoscaler(
    client: Client,
    function_id: str,
    *,
    min_containers: int | None = None,
    max_containers: int | None = None,
    buffer_containers: int | None = None,
    scaledown_window: float | None = None,
) -> FunctionAutoscalerSettings:
    """Change a Function's autoscaler settings until its next deployment; None leaves one as it is.

    Raises:
        InvalidError: for a value that cannot be; nothing is changed then.
        NotFoundError: the Function's App was stopped.
    """
    given: dict[str, Any] = {
        "min_containers": min_containers,
        "max_containers": max_containers,
        "buffer_containers": buffer_containers,
        "scaledown_window": scaledown_window,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    request = client._request(
        "function.update_autoscaler", {"function_id": function_id, "settings": settings}
    )
    return FunctionAutoscalerSettings(**await io(request))


class Autoscaled:
    """What a Function offers of its containers."""

    async def _target(self) -> tuple[Client, str]:
        raise NotImplementedError

    @blocking
    async def get_current_stats(self) -> FunctionStats:
        """Return how many inputs wait and run, and how many containers there are, at this moment.

        Raises:
            NotFoundError: the Function's App was stopped.

        Example:
            >>> with app.run():
            ...     square.get_current_stats().backlog
            0
        """
        client, function_id = await self._target()
        return await current_stats(client, function_id)

    @blocking
    async def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> FunctionAutoscalerSettings:
        """Change how many containers there are, at once and until the App's next deployment.

        Args:
            min_containers: containers that are kept warm.
            max_containers: the most there may be; those above it finish their inputs and end.
            buffer_containers: idle containers kept beside busy ones.
            scaledown_window: seconds that an idle container lives.

        Returns:
            All four settings as they are now. An argument that is not given leaves its setting alone.

        Raises:
            InvalidError: naming a value that cannot be; nothing is changed then.
            NotFoundError: the Function's App was stopped.

        Example:
            >>> with app.run():
            ...     square.update_autoscaler(max_containers=2).max_containers
            2
        """
        client, function_id = await self._target()
        return await update_autoscaler(
            client,
            function_id,
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
        )

    @blocking
    async def keep_warm(self, warm_pool_size: int) -> None:
        """Deprecated form of ``update_autoscaler(min_containers=warm_pool_size)``."""
        from ._options import warn_deprecated

        warn_deprecated(
            "'Function.keep_warm(n)' is now called 'Function.update_autoscaler(min_containers=n)'"
        )
        await self.update_autoscaler.aio(min_containers=warm_pool_size)
