"""What a program sends between devices, read off its compiled HLO.

A collective over groups of n devices on a tensor of B bytes, in the ring algorithms that reach the lower bound, has
each device send

    all-gather, reduce-scatter    (n - 1) / n B          B: the whole tensor, gathered or before the scatter
    all-reduce                    2 (n - 1) / n B        a reduce-scatter and an all-gather
    all-to-all                    (n - 1) / n B          B: what one device holds
    collective-permute            B

Collectives in a loop count as often as it runs, where XLA knows how often.

Source: Patarasuk and Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002), theorem 1; Chan et al. 2007 (doi:10.1002/cpe.1206),
section 3.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|called_computations|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
      kind: one of "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute".
      shapes: what it makes on one device, as "f32[4,8]".
      bytes: of the whole tensor, B in the module's table.
      devices: n, the size of the groups.
      times: how often one run of the program does it.
    """

    kind: str
    shapes: str
    bytes: int
    devices: int
    times: int = 1

    @property
    def bytes_sent(self) -> int:
        """What each device sends in one run, in bytes, by the module's table."""
        return self.times * sent(self.kind, self.bytes, self.devices)


@dataclasses.dataclass(frozen=True)
class Communication:
    """The collectives of a compiled program, in order; prints as a table."""

    collectives: tuple[Collective, ...]

    def count(self, kind: str | None = None) -> int:
        """How many collectives one run does, of one kind or of all."""
        return sum(c.times for c in self._of(kind))

    def bytes_sent(self, kind: str | None = None) -> int:
        """What each device sends in one run, in bytes, by one kind or by all."""
        return sum(c.bytes_sent for c in self._of(kind))

    def _of(self, kind: str | None) -> list[Collective]:
        if kind is not None and kind not in KINDS:
            raise ValueError(f"Communication: expected a kind out of {', '.join(KINDS)}, got {kind!r}")
        return [c for c in self.collectives if kind in (None, c.kind)]

    def __str__(self) -> str:
        if not self.collectives:
            return "no communication"
        head = ("collective", "on each device", "devices", "times", "bytes", "bytes sent")
        rows = [(c.kind, c.shapes, *map(str, (c.devices, c.times, c.bytes, c.bytes_sent))) for c in self.collectives]
        total = ("in all", "", "", str(self.count()), "", str(self.bytes_sent()))
        return as_table([head, *rows, total])


def sent(kind: str, size: int, devices: int) -> int:
    """What each of `devices` devices sends for one collective on `size` bytes, by the module's table."""
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * (devices - 1) * size // devices


def as_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Text columns, the first two to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def communication(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Communication:
    """The collectives that XLA compiles `fun(*args)` to, and their bytes; nothing is run.

    Args:
      fun: a function of arrays; `jax.jit` is applied unless it is jitted already.
      *args: its arguments, laid out as they will be (`jax.device_put`), or `ShapeDtypeStruct`s with a sharding.
      **kwargs: keyword arguments, likewise.

    Raises:
      TypeError: fun is not callable.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> print(fj.sharding.communication(lambda x: x @ x, jnp.ones((4, 4))))
    no communication
    """
    if not callable(fun):
        raise TypeError(f"communication: expected fun to be callable, got {fun!r}")
    jitted = fun if hasattr(fun, "lower") else jax.jit(fun)
    compiled = jitted.lower(*args, **kwargs).compile()
    return from_hlo(compiled.as_text(), len(jax.devices()))


def from_hlo(text: str, devices: int) -> Communication:
    """The collectives of a compiled HLO module; `devices` is the size of a group that is not written out."""
    found: dict[str, list[Collective]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if (start := _COMPUTATION.match(line)) and " = " not in line:
            name = start[1]
            found[name], calls[name] = [], []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            if (match := _COLLECTIVE.search(line)) is not None:
                collective = _collective(match[2], match[1], line, devices)
                found[name] += [collective] if collective.devices > 1 else []  # with itself a device need not talk
            elif (called := _CALLED.search(line)) is not None:
                trips = _TRIPS.search(line)
                times = int(trips[1]) if trips else 1
                calls[name] += [(callee.strip("% "), times) for callee in called[1].split(",")]

    def run(name: str, times: int) -> Iterator[Collective]:
        for c in found.get(name, ()):
            yield dataclasses.replace(c, times=times)
        for callee, n in calls.get(name, ()):
            yield from run(callee, times * n)

    return Communication(tuple(run(entry, 1)))


def _collective(kind: str, shapes: str, line: str, devices: int) -> Collective:
    arrays = _SHAPE.findall(shapes)
    if f"{kind}-start(" in line and shapes.startswith("(") and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands and results
    n = _group(line, devices)
    size = sum(_size(dtype, dims) for dtype, dims in arrays)
    whole = size * n if kind == "reduce-scatter" else size
    return Collective(kind, ", ".join(f"{dtype}[{dims}]" for dtype, dims in arrays), whole, n)


def _group(line: str, devices: int) -> int:
    """The size of a collective's groups, in each of the forms in which XLA writes them."""
    if "source_target_pairs=" in line or "replica_groups={}" in line:
        return devices
    if (iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line)) is not None:
        return int(iota[1])
    if (groups := re.search(r"replica_groups=\{\{([\d,]+)\}", line)) is not None:
        return len(groups[1].split(","))
    if (mesh := re.search(r"replica_groups=mesh\[(.*?)\].*?\{('.*?)\}", line)) is not None:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    raise ValueError(f"communication: cannot read the groups of devices in {line.strip()!r}")


def _size(dtype: str, dims: str) -> int:
    bits = re.search(r"\d+", dtype)
    size = 1 if dtype == "pred" or bits is None else max(1, int(bits[0]) // 8)
    for n in filter(None, dims.split(",")):
        size *= int(n)
    return size
