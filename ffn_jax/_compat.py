"""Where versions of JAX differ.

JAX 0.12 differentiates erf and erfc through a `custom_jvp` function `exp_neg_sq`, an implementation of
exp(-x^2) that splits x into bits for accuracy.  Read literally, that program is not exp(-x^2) over the reals,
and has no derivative.  It also describes the operands of `scan` by trees, where earlier versions count them.
"""

import functools
from typing import Any

import jax
from jax import lax


def is_exp_of_minus_square(eqn: Any) -> bool:
    """Whether an equation is JAX's own exp(-x^2), judged by its whole body."""
    if eqn.primitive.name != "custom_jvp_call" or len(eqn.invars) != 1:
        return False
    aval = eqn.invars[0].aval
    if not jax.numpy.issubdtype(aval.dtype, jax.numpy.floating):
        return False
    return str(eqn.params["call_jaxpr"]) == _body(tuple(aval.shape), str(aval.dtype))


@functools.cache
def _body(shape: tuple[Any, ...], dtype: str) -> str | None:
    """JAX's own program for exp(-x^2), as text; None where this version has none."""
    x: Any = jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype))  # type: ignore[no-untyped-call]
    derivative = jax.make_jaxpr(lambda x, t: jax.jvp(lax.erf, (x,), (t,))[1])(x, x)
    calls = (e for e in derivative.jaxpr.eqns if e.primitive.name == "custom_jvp_call")
    return next((str(e.params["call_jaxpr"]) for e in calls), None)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """The numbers of constants and of carries among the operands of a `scan` equation."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].update(eqn.invars).unpack()
    return len(list(consts)), len(list(carry))
