"""One line of progress on a terminal, for checks that take longer than two seconds."""

import sys
import time

_QUIET_SECONDS = 2.0


class Progress:
    """Overwrites one line of standard error; silent for two seconds, and where there is no terminal."""

    def __init__(self, title: str, enabled: bool | None = None) -> None:
        self._title = title
        self._start = time.monotonic()
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._width = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def __call__(self, step: str) -> None:
        """Show that `step` begins."""
        if self._enabled and self.seconds > _QUIET_SECONDS:
            line = f"{self._title}: {step} ({self.seconds:.0f} s)"
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)

    def close(self) -> None:
        """Clear the line."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0
