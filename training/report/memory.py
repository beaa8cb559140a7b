"""The most memory this process had at any time in a stretch of work."""

from __future__ import annotations

import contextlib
import gc
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Watches the peak of the process's resident memory while the block runs.

    Linux keeps that peak and can be told to begin anew (proc(5), ``clear_refs``). Elsewhere the
    peak is that of the process's whole life so far, which is never too low.

    Attributes:
        bytes: the peak, set when the block has ended.
    """

    bytes: int = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()  # what was done before has left towers behind that refer to themselves
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            _CLEAR.write_text("5")
        return self

    def __exit__(self, *raised: object) -> None:
        self.bytes = _peak()


def _peak() -> int:
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
