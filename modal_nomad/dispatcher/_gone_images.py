"""Images that were built, and are gone where a container is to start: they are built anew by themselves.

Somebody cleans up a machine's Docker, or a registry. What the store knows is not looked for when an App is
published, since that would cost each time; a container that cannot start tells of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from modal_nomad.dispatcher.images import Images
from modal_nomad.engines.base import ContainerEvent, ImageGone

if TYPE_CHECKING:
    from modal_nomad.dispatcher._containers import FunctionState

_AGAIN_SECONDS = 300.0
"""An image that is gone again so soon after it was built is for a person to look at."""
_NOT_PULLED = "Failed to pull"
"""How Nomad's docker driver says it."""


class GoneImages:
    """Builds what is gone, each once at a time.

    Args:
        images: what was built.
        clock: seconds.
    """

    def __init__(self, images: Images, clock: Callable[[], float] = time.monotonic) -> None:
        self._images = images
        self._clock = clock
        self._building: dict[str, int] = {}
        self._built: dict[str, float] = {}

    def takes(self, event: ContainerEvent, function: FunctionState) -> bool:
        """Tell whether a container failed for an image that can be built anew."""
        spec = function.spec
        if not spec.container_image or spec.container_image == spec.image.registry_tag:
            return False
        if not isinstance(event.error, ImageGone) and _NOT_PULLED not in event.reason:
            return False
        last = self._built.get(spec.container_image)
        return spec.container_image in self._building or last is None or self._clock() - last > _AGAIN_SECONDS

    async def build(self, function: FunctionState) -> None:
        """Build a Function's image anew. Raises ImageBuildError, and what its Secrets do."""
        spec = function.spec
        name = spec.container_image
        self._building[name] = self._building.get(name, 0) + 1
        try:
            await self._images.rebuild(spec.image, function.environment, name, spec.scope)
        finally:
            self._built[name] = self._clock()
            self._building[name] -= 1
            if not self._building[name]:
                del self._building[name]
