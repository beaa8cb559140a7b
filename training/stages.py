"""The progress of a run of several stages."""

from __future__ import annotations

import functools
from collections.abc import Callable

from towers.encoding import Progress

Stages = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def stage(progress: Stages | None, name: str) -> Progress | None:
    """The progress of one stage; None for None."""
    return None if progress is None else functools.partial(progress, name)
