"""The memory that a call takes from the system: how far it lifts the process's peak.

XLA's own plan (`memory_analysis`) says what one program asks for; the peak also holds its results, what the runtime's
threads need, and what the allocator rounds up. Linux keeps a process's highest resident size ("VmHWM") and lets the
process begin anew from where it stands; elsewhere there is no number.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROCESS = Path("/proc/self")


def peak_mib(call: Callable[[], Any]) -> float | None:
    """MiB by which the highest resident size during `call()`, results included, exceeds the size before it.

    None where the system does not tell. A first call compiles and starts threads: make one before.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed would hide what this one takes
        (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
        before = _highest_kib()
    except (OSError, AttributeError):
        return None
    call()
    return (_highest_kib() - before) / 1024


def _highest_kib() -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise OSError("no VmHWM in /proc/self/status")
