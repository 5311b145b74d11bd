"""Where versions of JAX differ: one function for each difference."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """The bare jaxpr and its constants, which JAX 0.12 keeps in the jaxpr itself and 0.10 in a closed one."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def scan_counts(eqn: Any) -> tuple[int, int]:
    """The numbers of constants and of carries among the operands of a `scan` equation."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].update(eqn.invars).unpack()
    return len(list(consts)), len(list(carry))


def evaluate_with_consts(closed: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    """A traced program on other values of the arrays that it closed over."""
    return list(jex.jaxpr_as_fun(closed.replace(consts=list(consts)))(*args))


def lax_helper(eqn: Any) -> str | None:
    """The name of a function of `jax.lax` that is written as a custom rule, such as JAX 0.12's `exp_neg_sq`.

    JAX differentiates `erf` by it. Its body splits numbers by their bits, so it counts as a primitive here: opening
    it would lose its derivative. It is known by where it was defined.
    """
    if eqn.primitive.name != "custom_jvp_call":
        return None
    debug = getattr(open_jaxpr(eqn.params["call_jaxpr"])[0], "debug_info", None)
    name, _, source = str(getattr(debug, "func_src_info", "")).partition(" at ")
    return name if "/jax/_src/lax/" in source.replace("\\", "/") else None


def is_exp_of_minus_square(eqn: Any) -> bool:
    """Whether an equation is JAX's own exp(-x²), judged by its whole body.

    JAX 0.12 differentiates erf and erfc through it. It splits x into bits for accuracy: read literally, that program
    is not exp(-x²) over the reals, and has no derivative.
    """
    if eqn.primitive.name != "custom_jvp_call" or len(eqn.invars) != 1:
        return False
    aval = eqn.invars[0].aval
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        return False
    return str(eqn.params["call_jaxpr"]) == _body(tuple(aval.shape), str(aval.dtype))


@functools.cache
def _body(shape: tuple[Any, ...], dtype: str) -> str | None:
    """JAX's own program for exp(-x^2), as text; None where this version has none."""
    x: Any = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    derivative = jax.make_jaxpr(lambda x, t: jax.jvp(lax.erf, (x,), (t,))[1])(x, x)
    calls = (e for e in derivative.jaxpr.eqns if e.primitive.name == "custom_jvp_call")
    return next((str(e.params["call_jaxpr"]) for e in calls), None)
