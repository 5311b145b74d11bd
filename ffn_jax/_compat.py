"""Where versions of JAX differ: one function for each difference."""

from collections.abc import Sequence
from typing import Any

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
