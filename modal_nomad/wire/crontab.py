"""A crontab line in a form that every cron reads alike."""

import re

_LOWEST = (0, 0, 1, 1, 0)
_HIGHEST = (59, 23, 31, 12, 6)
_WEEKDAY = 4
_DAYS = (2, _WEEKDAY)
_TO_SUNDAY = re.compile(r"[0-7]-7")


def plain(line: str) -> str:
    """Return a line of five fields that says the same to Nomad and to the timer of a dispatcher.

    They differ in three things. Of a day of the month and a day of the week that are both given either
    will do, but ``*/2`` is given to one of them, and not to the other: here it always is. A step that is
    larger than its field, such as ``*/60`` for once an hour, is refused by one of them: here it is the
    field's first value. And days up to 7, as ``5-7``, have no Sunday for one of them: here they are a list.

    Example:
        >>> plain("*/60 6 */2 * MON")
        '0 6 1-31/2 * MON'
    """
    return " ".join(
        ",".join(_part(part, place) for part in field.split(",")) for place, field in enumerate(line.split())
    )


def _part(text: str, place: int) -> str:
    base, slash, step = text.partition("/")
    size = int(step) if step.isdecimal() else int(not slash)
    # What is no step, or one of 0, is for whoever reads the line to refuse; so is a sixth field.
    if not size or place >= len(_LOWEST):
        return text
    if place == _WEEKDAY and _TO_SUNDAY.fullmatch(base):
        return ",".join(str(day) for day in sorted({day % 7 for day in range(int(base[0]), 8, size)}))
    if not slash:
        return text
    everything = base == "*"
    if size > _HIGHEST[place]:
        return str(_LOWEST[place]) if everything else base.partition("-")[0]
    if everything and size == 1:
        return base
    return f"{_LOWEST[place]}-{_HIGHEST[place]}/{step}" if everything and place in _DAYS else text
