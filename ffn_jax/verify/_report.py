"""What a check found: rows of (error, tolerance), a table for people, JSON for programs."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any


class VerificationError(AssertionError):
    """A check failed. Its message is the report's table; `report` is the report itself."""

    def __init__(self, report: "Report") -> None:
        self.report = report
        super().__init__(str(report))


@dataclasses.dataclass(frozen=True)
class Row:
    """The worst comparison of one quantity under one gate, over all draws and seeds.

    Attributes:
        gate: the dtype and the kind of bound, such as `float64 deterministic`.
        what: the property compared, such as `value`, `cotangent` or `additivity`.
        where: the argument or output, with the path in its pytree.
        error: the largest difference, relative to its tolerance.
        tolerance: the derived tolerance at the same entry.
        ratio: `error / tolerance`; more than 1 is a failure.
        index: the entry.
        draw: the inputs' draw.
        seed: the cotangent seed, empty for values.
        entries: how many entries were compared.
        loose: how many of them had a tolerance too wide to say anything (at a kink, after overflow).
        nonfinite: how many were NaN or infinite in the reference (and not compared unless equal).
        problem: a failure other than a difference, in words.
    """

    gate: str
    what: str
    where: str
    error: float = 0.0
    tolerance: float = 0.0
    ratio: float = 0.0
    index: tuple[int, ...] = ()
    draw: str = ""
    seed: str = ""
    entries: int = 0
    loose: int = 0
    nonfinite: int = 0
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the row passed."""
        return not self.problem and self.ratio <= 1.0

    def silent(self) -> "Row":
        """The same row, failed if none of its entries could be compared."""
        if self.problem or not self.entries or self.loose + self.nonfinite < self.entries:
            return self
        problem = "no entry could be compared: the reference is not finite, or its error bound says nothing"
        return dataclasses.replace(self, problem=problem)

    def merged(self, other: "Row") -> "Row":
        """The worse of two rows of the same quantity, with the counts of both."""
        worse = other if (bool(other.problem), other.ratio) > (bool(self.problem), self.ratio) else self
        return dataclasses.replace(
            worse,
            entries=self.entries + other.entries,
            loose=self.loose + other.loose,
            nonfinite=self.nonfinite + other.nonfinite,
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a check.

    Attributes:
        subject: what was checked, in words.
        statement: what was compared with what.
        rows: the worst comparison of each quantity under each gate.
        notes: what the reader should know: rules that were stripped, dtypes that could not be run.
        seconds: the time it took.
    """

    subject: str
    statement: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every row passed, and there is one."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that did not pass."""
        return tuple(row for row in self.rows if not row.ok)

    def raise_if_failed(self) -> None:
        """Raise `VerificationError` with the table unless `ok`."""
        if not self.ok:
            raise VerificationError(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; infinities and NaN as strings."""
        return {"ok": self.ok, **_plain(dataclasses.asdict(self))}

    def to_json(self, **options: Any) -> str:
        """The report as JSON text; `options` go to `json.dumps`."""
        return json.dumps(self.to_dict(), allow_nan=False, **options)

    def __str__(self) -> str:
        head = f"{'ok' if self.ok else 'FAILED'}: {self.subject}  ({self.seconds:.1f} s)"
        worst = max(self.failures, key=lambda row: (bool(row.problem), row.ratio), default=None)
        lines = [head, f"  {self.statement}"]
        if worst is not None:
            lines.append("  " + describe_failure(worst))
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, *_table(self.rows)])


class VJPReport(Report):
    """The outcome of `check_vjp`: a row for each output's value and each argument's cotangent."""


class LinearMapReport(Report):
    """The outcome of `check_linear_map`: a row for each property and argument."""


def describe_failure(row: Row) -> str:
    """One sentence: what differs, by how much, where, and the tolerance."""
    quantity = f"{row.what} {row.where}".strip()
    if row.problem:
        return f"{quantity} ({row.gate}): {row.problem}"
    at = f" at {list(row.index)}" if row.index else ""
    seed = f", seed {row.seed}" if row.seed else ""
    return (
        f"{quantity}{at} differs by {row.error:.3e}, the tolerance is {row.tolerance:.3e} "
        f"({row.gate}; draw {row.draw}{seed})"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _table(rows: Sequence[Row]) -> list[str]:
    header = (
        "",
        "gate",
        "what",
        "where",
        "error",
        "tolerance",
        "ratio",
        "at",
        "draw",
        "seed",
        "entries",
        "loose",
    )
    cells = [header]
    for row in rows:
        loose = str(row.loose) + (f" (+{row.nonfinite} not finite)" if row.nonfinite else "")
        numbers = (f"{row.error:.2e}", f"{row.tolerance:.2e}", f"{row.ratio:.2g}")
        place = (str(list(row.index)) if row.index else "", row.draw, row.seed, str(row.entries), loose)
        cells.append(("ok" if row.ok else "FAIL", row.gate, row.what, row.where, *numbers, *place))
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
