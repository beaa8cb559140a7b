"""Ctrl-C that arrives.

Python raises KeyboardInterrupt wherever the main thread happens to be. Where that is a callback of
C++ code, of an import lock or of a destructor, it is reported there and forgotten, and a training
that was told to stop goes on. So it is raised until it comes through.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Long enough for what cleans up on the way out.
_AGAIN_SECONDS = 3.0


@contextmanager
def insistent_interrupts() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGINT, and again every few seconds until the block has ended.

    After the block a second SIGINT kills. For the main thread, once in a process's life.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _report_other_than_interrupts
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    raise KeyboardInterrupt


def _report_other_than_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
