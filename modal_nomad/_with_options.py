"""The same Function or class with other options: what ``Function`` and ``Cls`` offer alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ._options import CpuRequest, MemoryRequest
    from .cloud_bucket_mount import CloudBucketMount
    from .gpu import GPU
    from .retries import Retries
    from .secret import Secret
    from .volume import Volume

S = TypeVar("S", bound="WithOptions")


class WithOptions:
    """Makes variants, whose containers are their own and scale by themselves."""

    def _variant(self: S, overrides: Mapping[str, Any]) -> S:
        raise NotImplementedError

    def _check_batching(self) -> None:
        """Raise InvalidError for what is known here not to take batches."""
        raise NotImplementedError

    def with_options(
        self: S,
        cpu: CpuRequest = None,
        memory: MemoryRequest = None,
        gpu: GPU | Sequence[GPU] = None,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[Any, Volume | CloudBucketMount] | None = None,
        retries: int | Retries | None = None,
        timeout: float | None = None,
        concurrency_limit: int | None = None,
        allow_concurrent_inputs: int | None = None,
        container_idle_timeout: float | None = None,
        *,
        env: Mapping[str, str | None] | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
        region: Any = None,
        cloud: str | None = None,
        **older_names: Any,
    ) -> S:
        """Return the same with other options; nothing is asked of the server until it is used.

        Options cannot be taken away this way. Successive calls add up. Older programs give the first ones
        by position, in this order.

        Args:
            cpu: cores, or a pair (request, limit).
            memory: MiB, or a pair (request, limit).
            gpu: as for ``@app.function``.
            secrets: Secrets, in the place of those it has; those of an earlier call do not stay.
            volumes: Volumes by paths, in the place of those it has.
            retries: how often a failed input is run again, or a ``modal.Retries``.
            timeout: seconds one input may run.
            concurrency_limit: deprecated: use ``max_containers``.
            allow_concurrent_inputs: deprecated: use ``with_concurrency``.
            container_idle_timeout: deprecated: use ``scaledown_window``.
            env: environment variables, besides those it has.
            max_containers: the most containers at a time.
            buffer_containers: extra idle containers while it is in use.
            scaledown_window: seconds an idle container lives.
            region: datacenters to run in.
            cloud: run on nodes whose meta says this ``cloud``.

        Raises:
            InvalidError: when a parameter is not what it may be.

        Example:
            >>> with app.run():
            ...     square.with_options(cpu=2, max_containers=1).remote(3)
            9
        """
        from ._options import apply_aliases
        from ._variants import overrides_from

        options = {
            "cpu": cpu,
            "memory": memory,
            "gpu": gpu,
            "env": env,
            # Nothing can be taken away, so none is the same as not given.
            "secrets": secrets or None,
            "volumes": volumes,
            "retries": retries,
            "max_containers": max_containers,
            "buffer_containers": buffer_containers,
            "scaledown_window": scaledown_window,
            "timeout": timeout,
            "region": region,
            "cloud": cloud,
            "allow_concurrent_inputs": allow_concurrent_inputs,
        }
        old = {
            "concurrency_limit": concurrency_limit,
            "container_idle_timeout": container_idle_timeout,
            **older_names,
        }
        return self._variant(overrides_from(apply_aliases(".with_options", options, old)))

    def with_concurrency(self: S, *, max_inputs: int, target_inputs: int | None = None) -> S:
        """Return the same with containers that run several inputs at a time, as ``@modal.concurrent`` says.

        Args:
            max_inputs: the most inputs of a container at a time.
            target_inputs: how many the autoscaler aims at.

        Raises:
            InvalidError: when ``target_inputs`` is above ``max_inputs``.

        Example:
            >>> with app.run():
            ...     square.with_concurrency(max_inputs=4).remote(3)
            9
        """
        from ._partial_function import check_concurrency

        check_concurrency(max_inputs, target_inputs)
        return self._variant({"max_concurrent_inputs": max_inputs, "target_concurrent_inputs": target_inputs})

    def with_batching(self: S, *, max_batch_size: int, wait_ms: int) -> S:
        """Return the same taking many inputs at a time, as ``@modal.batched`` says.

        Args:
            max_batch_size: the most inputs of one batch.
            wait_ms: milliseconds a batch waits to fill up.

        Raises:
            InvalidError: a class of several methods, or a function that cannot be batched.

        Example:
            >>> @app.function()
            ... def lengths(texts):
            ...     return [len(text) for text in texts]
            >>> with app.run():
            ...     list(lengths.with_batching(max_batch_size=2, wait_ms=10).map(["a", "bc"]))
            [1, 2]
        """
        from ._partial_function import check_batching

        check_batching(max_batch_size, wait_ms)
        self._check_batching()
        return self._variant({"batch_max_size": max_batch_size, "batch_wait_ms": wait_ms})
