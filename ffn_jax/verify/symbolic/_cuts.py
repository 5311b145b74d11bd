"""Cuts: a shared intermediate value becomes a variable.

tanh(u) with u = sum_k x[i,k] W[k,j] + b[j] expands into products that nobody needs.  Where a tensor depends
on the primal inputs only and feeds a transcendental function or a comparison, it is replaced by a new tensor
named after its canonical content, in the rule and in the reference alike.  An identity that holds for every
value of the new tensor holds for its actual value: sound, but not complete (cutting x - mean would lose sum(x
- mean) = 0), so a proof that fails with cuts is tried again without.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from jax.extend import core

from ffn_jax.verify.symbolic._atoms import Axis, Entry, Index, Sum
from ffn_jax.verify.symbolic._polynomials import Poly, entry
from ffn_jax.verify.symbolic._sums import atoms_within, axes_within, side_by_side, substitute
from ffn_jax.verify.symbolic._tensors import Tensor
from ffn_jax.verify.symbolic._workspace import workspace

FEEDS = frozenset(
    [
        "exp",
        "exp2",
        "tanh",
        "erf",
        "erfc",
        "logistic",
        "log",
        "log1p",
        "expm1",
        "sin",
        "cos",
        "gt",
        "ge",
        "lt",
        "le",
        "max",
        "min",
    ]
)  # not rsqrt: see above
_ELEMENTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "square",
        "integer_pow",
        "copy",
        "exp",
        "tanh",
        "erf",
        "erfc",
        "logistic",
        "convert_element_type",
    ]
)


class Cuts:
    """Which contents are cut; `collecting` adds those that a program wants."""

    def __init__(self, primal: Iterable[str]) -> None:
        self.primal = frozenset(primal)
        self.collecting = True
        self._keys: set[str] = set()

    def wanted(self, jaxpr: Any) -> set[Any]:
        """The variables that feed a transcendental function, traced back through elementwise operations."""
        if not self.collecting:
            return set()
        made_by = {v: e for e in jaxpr.eqns for v in e.outvars}
        memo: dict[Any, Any] = {}

        def source(v: Any) -> Any:
            if v not in memo:
                e = made_by.get(v)
                memo[v] = v
                if e is not None and e.primitive.name in _ELEMENTWISE:
                    tensors = {source(x) for x in e.invars if not isinstance(x, core.Literal) and x.aval.shape != ()}
                    if len(tensors) == 1:
                        memo[v] = tensors.pop()
            return memo[v]

        fed = (x for e in jaxpr.eqns if e.primitive.name in FEEDS for x in e.invars)
        return {source(x) for x in fed if not isinstance(x, core.Literal)}

    def apply(self, t: Tensor, wanted: bool) -> Tensor:
        """The tensor, or the variable that stands for it."""
        if not self._worthwhile(t.entry):
            return t
        groups = _coarse(t.entry, t.indices)
        coarse = [(Index(_length(group)),) for group in groups]
        new: dict[Index, Axis] = {}
        for group, (k,) in zip(groups, coarse, strict=True):
            new.update({group[0]: (k,), **dict.fromkeys(group[1:], ())})
        value = substitute(t.entry, new)
        names = {k: f"%{q}" for q, (k,) in enumerate(coarse)}
        key = f"{[str(k.size) for (k,) in coarse]} {value.text(names, 0)}"
        if wanted and self.collecting:
            self._keys.add(key)
        if key not in self._keys:
            return t
        name = workspace.cut_names.setdefault(key, f"@{len(workspace.cut_names)}")
        workspace.cuts.setdefault(name, (tuple(coarse), value))
        return Tensor(t.axes, entry(name, groups))

    def _worthwhile(self, p: Poly) -> bool:
        if len(p.terms) < 2 and not any(isinstance(a, Sum) for m in p.terms for a, _ in m):
            return False
        return all(n in self.primal or n.startswith(("@", "const:", "iota:", "op:")) for n in tensor_names(p))


def tensor_names(p: Poly) -> set[str]:
    """The tensors that a polynomial reads."""
    return {a.name for m in p.terms for a in atoms_within(m) if isinstance(a, Entry)}


def _length(group: tuple[Index, ...]) -> Any:
    size = 1
    for i in group:
        size = size * i.size
    return size


def _coarse(p: Poly, own: list[Index]) -> list[tuple[Index, ...]]:
    """The free indices in a fixed order, those that only occur side by side taken together."""
    rest = sorted(p.free - set(own), key=lambda i: i.uid)
    order = [i for i in (*own, *rest) if i in p.free]
    axes = [axis for m in p.terms for axis in axes_within(m)]
    follows: dict[Index, Index] = {}
    for axis in axes:
        for i, j in pairwise(axis):
            if i in follows or not (isinstance(i, Index) and isinstance(j, Index)):
                continue
            if i in p.free and j in p.free and side_by_side(axes, i, j):
                follows[i] = j
    inner = set(follows.values())
    groups = []
    for i in order:
        if i not in inner:
            group = [i]
            while group[-1] in follows:
                group.append(follows[group[-1]])
            groups.append(tuple(group))
    rank = {i: q for q, i in enumerate(order)}
    return sorted(groups, key=lambda group: min(rank[i] for i in group))
