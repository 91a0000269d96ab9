"""One function call as the SDK's connection sees it."""

from typing import Callable, Dict, List, Optional, Tuple

from .window import ReadWindow

Output = Tuple[int, int, bytes, int]
"""Index, status, payload, flags."""


class Call:
    """One function call as the connection sees it: what is unanswered, and who wants the outputs.

    Attributes:
        call_id: ``fc-…``.
        function_id: ``fu-…``.
        method: which method of a class; empty for a plain function.
        pending: inputs without an output, by index; sent again after a reconnect.
        alone: who made it says whether it reads the socket or somebody else has to.
        window: what a generator's one input yields goes here.
        on_items: tells that there is something new in it.
    """

    __slots__ = (
        "acks",
        "alone",
        "call_id",
        "function_id",
        "method",
        "on_failure",
        "on_items",
        "on_outputs",
        "parent",
        "pending",
        "window",
    )

    def __init__(
        self,
        call_id: str,
        function_id: str,
        on_outputs: Callable[[List[Output]], None],
        on_failure: Callable[[BaseException], None],
        *,
        parent: str = "",
        method: str = "",
        alone: bool = False,
        window: Optional[ReadWindow] = None,
        on_items: Optional[Callable[[], None]] = None,
    ) -> None:
        self.call_id = call_id
        self.alone = alone
        self.function_id = function_id
        self.on_outputs = on_outputs
        self.on_failure = on_failure
        self.parent = parent
        self.method = method
        self.pending: Dict[int, Tuple[bytes, int]] = {}
        self.acks: List[int] = []
        self.window = window
        self.on_items = on_items
