"""What one proof writes down while it runs.

A proof interns its atoms (equal atoms are one object), names the tensors it cuts, and collects the side
conditions and the readings of literals that end up in the certificate.  All of it belongs to one call of
`prove_vjp`, which opens a fresh workspace and holds a lock, because the tables are shared by every module of
this package.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

Side = tuple[str, Any]  # ("nonzero" | "positive" | "off the kink", the polynomial concerned)


class Unsupported(Exception):  # noqa: N818
    """The normal form does not reach this program; the message names what stopped it."""


class OutOfTime(Unsupported):
    """The time given to one attempt is spent."""


class Workspace:
    """The tables of one proof.

    Attributes:
        atoms: interned atoms, by their key.
        texts: keys of atoms under a naming of indices, a cache.
        cuts: definitions of cut tensors, by name: (axes, polynomial).
        cut_names: name of a cut tensor, by its canonical content.
        conditions: side conditions met, by their text key.
        literals: how each non-trivial float literal was read, by its text: (reading, relative gap).
        deadline: `time.monotonic()` value after which `tick` raises.
    """

    def __init__(self) -> None:
        self.clear()
        self.deadline = float("inf")

    def clear(self) -> None:
        """Forget everything but the deadline."""
        self.atoms: dict[str, Any] = {}
        self.texts: dict[Any, str] = {}
        self.cuts: dict[str, tuple[Any, Any]] = {}
        self.cut_names: dict[str, str] = {}
        self.conditions: dict[str, Side] = {}
        self.literals: dict[str, tuple[str, float]] = {}

    def tick(self) -> None:
        """Raise `OutOfTime` past the deadline; called from every loop that may grow."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time limit was reached")

    def assume(self, what: str, poly: Any) -> None:
        """Record the side condition that `poly` is nonzero, positive, or off the kink at zero."""
        self.conditions.setdefault(f"{what} {poly.key}", (what, poly))


workspace = Workspace()
_LOCK = threading.RLock()


@contextlib.contextmanager
def fresh_workspace() -> Iterator[Workspace]:
    """Give the caller empty tables, alone; the tables of a caller further out are put back afterwards."""
    with _LOCK:
        saved = dict(vars(workspace))
        workspace.clear()
        workspace.deadline = float("inf")
        try:
            yield workspace
        finally:
            vars(workspace).update(saved)
