"""Automatic mutants of a jaxpr: one equation is changed, the shapes stay.

A mutation is named by (equation, kind), where the equation is its position in a walk through the program and
the programs inside it, so that the same mutation can be made in the same program traced at other sizes.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from ffn_jax._compat import scan_counts

Mutation = tuple[int, str]
_BINARY = {"add": jnp.add, "add_any": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply}
_UNARY = {
    "tanh": jnp.sin,
    "exp": jnp.tanh,
    "logistic": jnp.tanh,
    "erfc": lax.erf,
    "erf": jnp.tanh,
    "neg": lambda x: x,
}
_UNARY["square"] = lambda x: x
_BODIES = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "scan": "jaxpr"}


def _kinds(eqn: Any) -> list[str]:
    out = eqn.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating) or eqn.primitive.name in _BODIES:
        return []
    kinds = ["doubled", "negated"]
    name = eqn.primitive.name
    if name in _BINARY:
        kinds += [f"swapped to {other}" for other in ("add", "sub", "mul") if other != name.removesuffix("_any")]
        kinds += [f"operand {k} alone" for k in (0, 1) if eqn.invars[k].aval.shape == out.shape]
    if name in _UNARY:
        kinds.append("another function")
    kinds += [
        f"literal {k} nudged"
        for k, v in enumerate(eqn.invars)
        if isinstance(v, core.Literal) and jnp.issubdtype(v.aval.dtype, jnp.floating) and name in (*_BINARY, "div")
    ]
    return kinds


def _mutated(eqn: Any, kind: str, ins: list[Any], outs: list[Any]) -> list[Any]:
    name = eqn.primitive.name
    if kind == "doubled":
        return [outs[0] * 2.0, *outs[1:]]
    if kind == "negated":
        return [-outs[0], *outs[1:]]
    if kind == "another function":
        return [_UNARY[name](ins[0])]
    if kind.startswith("swapped"):
        return [_BINARY[kind.split()[-1]](*ins)]
    k = int(kind.split()[1])
    if kind.endswith("alone"):
        return [ins[k] + jnp.zeros_like(outs[0])]
    ins = [v * 1.0625 + 0.0625 if q == k else v for q, v in enumerate(ins)]
    return [_BINARY.get(name, jnp.divide)(*ins)]


def mutations(closed: Any) -> list[Mutation]:
    """All mutations of a program."""
    return [(number, kind) for number, eqn in _walk(closed.jaxpr) for kind in _kinds(eqn)]


def _walk(jaxpr: Any, start: list[int] | None = None) -> Iterator[tuple[int, Any]]:
    counter = [0] if start is None else start
    for eqn in jaxpr.eqns:
        counter[0] += 1
        yield counter[0], eqn
        if eqn.primitive.name in _BODIES:
            yield from _walk(eqn.params[_BODIES[eqn.primitive.name]].jaxpr, counter)


def mutant(closed: Any, mutation: Mutation) -> Any:
    """The program with one mutation, as a jaxpr."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *args: _run(closed, args, mutation, [0]))(*avals)


def _run(closed: Any, args: Any, mutation: Mutation, counter: list[int]) -> list[Any]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return np.asarray(v.val, v.aval.dtype) if isinstance(v, core.Literal) else env[v]

    for eqn in jaxpr.eqns:
        counter[0] += 1
        number, ins = counter[0], [read(v) for v in eqn.invars]
        outs = _step(eqn, ins, mutation, counter)
        if number == mutation[0]:
            outs = _mutated(eqn, mutation[1], ins, outs)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _step(eqn: Any, ins: list[Any], mutation: Mutation, counter: list[int]) -> list[Any]:
    name, p = eqn.primitive.name, eqn.params
    if name in ("jit", "pjit", "closed_call"):
        return _run(p[_BODIES[name]], ins, mutation, counter)
    if name == "scan":
        first = counter[0]
        counter[0] += sum(1 for _ in _walk(p["jaxpr"].jaxpr))
        m, n = scan_counts(eqn)
        consts, init, xs = ins[:m], ins[m : m + n], ins[m + n :]

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            out = _run(p["jaxpr"], [*consts, *carry, *x], mutation, [first])
            return out[:n], out[n:]

        carry, ys = lax.scan(step, init, xs, reverse=p["reverse"])
        return [*carry, *ys]
    out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(p))
    return list(out) if eqn.primitive.multiple_results else [out]
