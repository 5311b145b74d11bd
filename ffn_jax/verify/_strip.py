"""A function with every hand-written derivative rule forgotten.

`jax.custom_vjp` and `jax.custom_jvp` calls are replaced by the functions that they decorate, wherever they
occur: inside `jit`, `scan`, `cond`, `while_loop` and `checkpoint` as well.  What is left is differentiated by
JAX alone, which makes it a reference that no hand-written rule can leak into.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from ffn_jax._compat import is_exp_of_minus_square, scan_counts

_CUSTOM = {  # primitive -> the parameter that holds the undecorated function
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
_INLINED = {  # calls that are inlined when something inside them is to be stripped
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def strip_custom_rules(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` with the bodies of its `custom_vjp` and `custom_jvp` functions in their place.

    Args:
        fun: any JAX-traceable function of pytrees; what it closes over stays closed over.

    Returns:
        A function of the same signature and the same values, with no custom rule anywhere.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> square = jax.custom_jvp(lambda x: x * x)
        >>> square.defjvps(lambda t, y, x: 3.0 * t)  # a wrong rule
        >>> float(jax.grad(square)(2.0)), float(jax.grad(strip_custom_rules(square))(2.0))
        (3.0, 4.0)
    """

    @functools.wraps(fun)
    def stripped(*args: Any, **kwargs: Any) -> Any:
        closed, shapes = jax.make_jaxpr(lambda a, k: fun(*a, **k), return_shape=True)(args, kwargs)
        out = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return stripped


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                found.append(item)
    return found


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def _has_custom(jaxpr: Any) -> bool:
    return any(
        (eqn.primitive.name in _CUSTOM and not is_exp_of_minus_square(eqn))
        or any(_has_custom(inner) for inner in _bodies(eqn))
        for eqn in _opened(jaxpr)[0].eqns
    )


def _function(jaxpr: Any) -> Callable[..., list[Any]]:
    body, consts = _opened(jaxpr)
    return lambda *args: _evaluate(body, consts, args)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _step(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _step(eqn: Any, ins: list[Any]) -> list[Any]:
    name, p = eqn.primitive.name, eqn.params
    if name in _CUSTOM and not is_exp_of_minus_square(eqn):
        return _function(p[_CUSTOM[name]])(*ins)
    if not any(_has_custom(inner) for inner in _bodies(eqn)):
        out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(p))
        return list(out) if eqn.primitive.multiple_results else [out]
    if name in _INLINED:
        return _function(p[_INLINED[name]])(*ins)
    if name == "scan":
        return _scan(eqn, ins)
    if name == "while":
        return _while(p, ins)
    if name == "cond":
        which, *operands = ins
        return list(lax.switch(which, [_function(b) for b in p["branches"]], *operands))
    raise NotImplementedError(f"strip_custom_rules: cannot look inside the primitive {name!r}")


def _scan(eqn: Any, ins: list[Any]) -> list[Any]:
    p = eqn.params
    n_consts, n_carry = scan_counts(eqn)
    consts, init, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    body = _function(p["jaxpr"])

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        out = body(*consts, *carry, *x)
        return out[:n_carry], out[n_carry:]

    length = None if xs else p["length"]  # which may be a symbolic size, that only arrays may carry
    carry, ys = lax.scan(step, init, xs, length=length, reverse=p["reverse"], unroll=p["unroll"])
    return [*carry, *ys]


def _while(p: Any, ins: list[Any]) -> list[Any]:
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    for_cond, for_body, init = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    goes_on, body = _function(p["cond_jaxpr"]), _function(p["body_jaxpr"])
    return list(lax.while_loop(lambda c: goes_on(*for_cond, *c)[0], lambda c: body(*for_body, *c), init))
