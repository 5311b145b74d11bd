"""What the commands print: a table with aligned columns, and a line of progress where someone is watching."""

import sys
from collections.abc import Sequence
from typing import Self, TextIO


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (), groups: Sequence[tuple[str, int]] = ()) -> str:
    """Rows of equally many cells as aligned text: columns to the right, those in `left` to the left.

    `groups` are titles above the columns, each with how many columns it stands over.

    >>> print(table([("layer", "min", "max"), ("0", "12.5", "13")], groups=[("", 1), ("norm", 2)]))
              norm
    layer   min  max
        0  12.5   13
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    titles, start = [], 0
    for title, count in groups:
        width = sum(widths[start : start + count]) + 2 * (count - 1)
        widths[start] += max(len(title) - width, 0)
        titles.append(title.center(max(width, len(title))))
        start += count

    def cells(row: Sequence[str]) -> list[str]:
        return [c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]

    lines = [*([titles] if groups else []), *map(cells, rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)


class Progress:
    """A line on stderr that says what is being done; silent unless stderr is a terminal. A context manager.

    >>> with Progress(2) as progress:
    ...     progress("loading")
    ...     progress("computing")
    """

    def __init__(self, total: int, stream: TextIO | None = None):
        self.total, self.done = total, 0
        self.stream = sys.stderr if stream is None else stream

    def __call__(self, doing: str) -> None:
        """Says that the next of the `total` steps has begun."""
        filled = 24 * self.done // max(self.total, 1)
        self.done = min(self.done + 1, self.total)
        self._write(f"[{'#' * filled}{'.' * (24 - filled)}] {doing}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def _write(self, line: str) -> None:
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[2K{line}")
            self.stream.flush()
