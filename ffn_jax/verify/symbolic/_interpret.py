"""From a jaxpr to the normal form of its outputs: a walk over the equations."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from ffn_jax._compat import is_exp_of_minus_square, open_jaxpr
from ffn_jax.verify.symbolic import _indexing as _indexing  # its rules
from ffn_jax.verify.symbolic._atoms import Index
from ffn_jax.verify.symbolic._cuts import Cuts
from ffn_jax.verify.symbolic._functions import function
from ffn_jax.verify.symbolic._literals import read_literal
from ffn_jax.verify.symbolic._polynomials import ZERO, Poly, as_poly, irrational
from ffn_jax.verify.symbolic._primitives import RULES, Rule
from ffn_jax.verify.symbolic._scan import scan
from ffn_jax.verify.symbolic._sums import delta
from ffn_jax.verify.symbolic._tensors import Tensor, elementwise, new_axis, scalar, variable
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace

_finfo: Any = jax.numpy.finfo  # Any: it has no types

CALLS = {  # primitive -> the parameter that holds the body
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def constant(value: Any) -> Tensor:
    """A number or an array of numbers that the program carries."""
    v = np.asarray(value)
    if v.ndim == 0:
        return scalar(_number(v))
    if v.size and (v == v.flat[0]).all():
        return Tensor([new_axis(s) for s in v.shape], _number(np.asarray(v.flat[0])))
    if v.ndim == 2 and v.shape[0] == v.shape[1] and (v == np.eye(v.shape[0])).all():
        i, j = Index(v.shape[0]), Index(v.shape[0])
        return Tensor([[i], [j]], delta(i, j))
    digest = hashlib.sha256(v.tobytes() + f"{v.shape}{v.dtype}".encode()).hexdigest()
    return variable(f"const:{digest}", v.shape)


def _number(v: np.ndarray[Any, Any]) -> Poly:
    if v.dtype == np.bool_ or np.issubdtype(v.dtype, np.integer):
        return as_poly(int(v))
    if not jax.numpy.issubdtype(v.dtype, np.floating):
        raise Unsupported(f"a number of type {v.dtype}")
    x = float(v)
    if not np.isfinite(x):
        raise Unsupported(f"the literal {x}")
    reading = read_literal(x, float(_finfo(v.dtype).eps), str(v[()]))
    if reading.text:
        workspace.literals[reading.text] = (str(reading), reading.gap)
    out = as_poly(reading.q) if reading.q else ZERO
    if reading.root:
        out = out * irrational(2, type(reading.q)(1, 2))
    if reading.half_pi:
        out = out * irrational("pi", type(reading.q)(reading.half_pi, 2))
    return out


def interpret(jaxpr: Any, args: Sequence[Tensor], cuts: Cuts | None = None) -> list[Tensor]:
    """The outputs of a (closed) jaxpr on these tensors.

    Raises:
        Unsupported: naming the primitive that has no rule here, or whose rule does not cover this use.
    """
    body, consts = open_jaxpr(jaxpr)
    env: dict[Any, Tensor] = {}

    def read(v: Any) -> Tensor:
        return constant(v.val) if isinstance(v, core.Literal) else env[v]

    wanted = cuts.wanted(body) if cuts else set()

    def write(v: Any, t: Tensor) -> None:
        env[v] = cuts.apply(t, v in wanted) if cuts else t

    for v, c in zip(body.constvars, consts, strict=True):
        env[v] = c if isinstance(c, Tensor) else constant(c)
    for v, a in zip(body.invars, args, strict=True):
        write(v, a)
    for eqn in _live(body):
        ins = [read(v) for v in eqn.invars]
        for v, t in zip(eqn.outvars, _apply(eqn, ins, cuts), strict=True):
            write(v, t)
    return [read(v) for v in body.outvars]


def _live(jaxpr: Any) -> list[Any]:
    """The equations that an output needs."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    out = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            out.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, core.Literal))
    return out[::-1]


def _apply(eqn: Any, ins: list[Tensor], cuts: Cuts | None) -> list[Tensor]:
    name = eqn.primitive.name
    _check_types(eqn)
    if is_exp_of_minus_square(eqn):
        return [Tensor(ins[0].axes, function("exp", -(ins[0].entry * ins[0].entry)))]
    if name in CALLS:
        return interpret(eqn.params[CALLS[name]], ins, cuts)
    structured: dict[str, Callable[[], list[Tensor]]] = {
        "scan": lambda: scan(eqn, ins, lambda jaxpr, args: interpret(jaxpr, args, cuts)),
        "cond": lambda: _cond(eqn, ins, cuts),
    }
    rule: Rule | None = RULES.get(name)
    if rule is None and name not in structured:
        raise Unsupported(f"the primitive {name!r} has no rule")
    try:
        return structured[name]() if rule is None else rule(eqn, *ins)
    except Unsupported as e:
        named = type(e)(str(e) if "primitive" in str(e) or "time" in str(e) else f"the primitive {name!r}: {e}")
        raise named from None


def _check_types(eqn: Any) -> None:
    for v in eqn.outvars:
        dtype = getattr(v.aval, "dtype", None)
        if dtype is None or not (
            jax.numpy.issubdtype(dtype, np.floating) or dtype == np.bool_ or dtype in (np.int32, np.int64)
        ):
            raise Unsupported(f"the primitive {eqn.primitive.name!r} yields {dtype}, which is not modelled")


def _cond(eqn: Any, ins: list[Tensor], cuts: Cuts | None) -> list[Tensor]:
    which, *args = ins
    branches = eqn.params["branches"]
    chosen = which.entry.constant
    if chosen is not None:
        return interpret(branches[min(max(int(chosen), 0), len(branches) - 1)], args, cuts)
    if len(branches) != 2 or not _is_bit(which.entry):
        raise Unsupported("a choice that is not between two branches by a comparison")
    no, yes = (interpret(b, args, cuts) for b in branches)
    return [
        elementwise(
            lambda p, q: p + q,
            t,
            elementwise(lambda p, q: p * q, which, elementwise(lambda p, q: p - q, s, t)),
        )
        for t, s in zip(no, yes, strict=True)
    ]


def _is_bit(p: Poly) -> bool:
    """Whether p is 0 or 1 everywhere, seen from p p = p."""
    return (p * p - p).is_zero
