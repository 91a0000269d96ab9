"""Ends of event loops that run beside a test."""

from __future__ import annotations

import asyncio


async def end_all() -> None:
    """End every other task of this loop, those of connections included that were accepted a moment ago."""
    me = asyncio.current_task()
    for _ in range(3):
        # What was accepted gets its task within these turns.
        for _ in range(5):
            await asyncio.sleep(0)
        others = asyncio.all_tasks() - {me}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
