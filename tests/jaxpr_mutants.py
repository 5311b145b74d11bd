"""Wrong rules made from a right one: one equation of the rule's jaxpr rewritten.

A mutant is a function with the same arguments as the rule. `harmless` says that the rewriting provably changes nothing:
the operands of a commutative primitive were exchanged.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ffn_jax._compat import open_jaxpr
from ffn_jax.verify._jaxprs import called_jaxpr
from ffn_jax.verify._strip import bind

COMMUTATIVE = ("add", "mul", "add_any", "max")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One rewritten program."""

    name: str
    function: Callable[..., list[Any]]
    harmless: bool = False


def flat_equations(closed: Any) -> tuple[list[Any], Any]:
    """A program of the same meaning whose calls (jit, custom rules) are inlined, and its jaxpr."""

    def inlined(jaxpr, consts, args):
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
        read = lambda a: a.val if isinstance(a, jex.Literal) else env[a]
        for eqn in jaxpr.eqns:
            operands = [read(a) for a in eqn.invars]
            called = called_jaxpr(eqn)
            outs = inlined(*called, operands) if called else bind(eqn, operands)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(a) for a in jaxpr.outvars]

    bare, consts = open_jaxpr(closed)
    like = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in bare.invars]
    flat = jax.make_jaxpr(lambda *args: inlined(bare, consts, args))(*like)
    return open_jaxpr(flat)


def live(jaxpr: Any) -> list[int]:
    """The equations that a result depends on."""
    needed, alive = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}, []
    for i in reversed(range(len(jaxpr.eqns))):
        if any(v in needed for v in jaxpr.eqns[i].outvars):
            alive.append(i)
            needed |= {a for a in jaxpr.eqns[i].invars if not isinstance(a, jex.Literal)}
    return alive[::-1]


def mutants(closed: Any) -> Iterator[Mutant]:
    """Every rewriting of every equation that some result depends on."""
    jaxpr, consts = flat_equations(closed)

    def program(index: int, rewrite: Callable[..., Any]) -> Callable[..., list[Any]]:
        def run(*args):
            env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
            read = lambda a: a.val if isinstance(a, jex.Literal) else env[a]
            for i, eqn in enumerate(jaxpr.eqns):
                operands = [read(a) for a in eqn.invars]
                outs = [rewrite(eqn, *operands)] if i == index else bind(eqn, operands)
                env.update(zip(eqn.outvars, outs, strict=True))
            return [read(a) for a in jaxpr.outvars]

        return run

    for i in live(jaxpr):
        for kind, rewrite, harmless in rewritings(jaxpr.eqns[i]):
            yield Mutant(f"{i}:{jaxpr.eqns[i].primitive.name}:{kind}", program(i, rewrite), harmless)


def rewritings(eqn: Any) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """The wrong versions of one equation."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating) or eqn.primitive.multiple_results:
        return
    run = lambda eqn, *xs: bind(eqn, xs)[0]
    full = lambda x: jnp.broadcast_to(x, out.shape)
    if name in ("add", "sub", "add_any"):
        yield "drop the second term", lambda eqn, a, b: full(a), False
        yield "flip the second sign", lambda eqn, a, b: full(a + b if name == "sub" else a - b), False
        yield "swap", lambda eqn, a, b: full(run(eqn, b, a)), name in COMMUTATIVE
    if name == "mul":
        yield "drop the second factor", lambda eqn, a, b: full(a), False
        yield "swap", lambda eqn, a, b: full(run(eqn, b, a)), True
    if name in ("neg", "tanh", "logistic", "exp", "erf", "integer_pow", "square"):
        yield "flip the sign", lambda eqn, x: -run(eqn, x), False
    if name == "integer_pow":
        yield "another power", lambda eqn, x: x ** (eqn.params["y"] + 1), False
    for n, atom in enumerate(eqn.invars):
        if isinstance(atom, jex.Literal) and float(atom.val) != 0 and np.isfinite(float(atom.val)):
            perturb = lambda eqn, *xs, n=n: run(eqn, *xs[:n], xs[n] * np.float64(1 + 1e-7), *xs[n + 1 :])
            yield f"constant {n} times 1 + 1e-7", perturb, False
    if name == "reduce_sum" and any(eqn.invars[0].aval.shape[a] > 1 for a in eqn.params["axes"]):
        first = lambda eqn, x: x[tuple(0 if a in eqn.params["axes"] else slice(None) for a in range(x.ndim))]
        yield "drop the sum", first, False
    if name == "dot_general":
        yield "flip the sign", lambda eqn, a, b: -run(eqn, a, b), False
        shapes = [atom.aval.shape for atom in eqn.invars]
        for n, shape in enumerate(shapes):
            if len(shape) == 2 and shape[0] == shape[1]:
                turn = lambda eqn, *xs, n=n: run(eqn, *(x.T if m == n else x for m, x in enumerate(xs)))
                yield f"transpose operand {n}", turn, False
        if shapes[0] == shapes[1] and len(shapes[0]) == 2 and out.shape[0] == out.shape[1]:
            yield "swap", lambda eqn, a, b: run(eqn, b, a), False
    if name == "transpose" and len(out.shape) == 2 and out.shape[0] == out.shape[1]:
        yield "drop the transpose", lambda eqn, x: x, False
