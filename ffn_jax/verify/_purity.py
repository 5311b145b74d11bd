"""Functions that cannot be checked: impure ones, and those that make a random key inside."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ffn_jax.verify._jaxprs import all_equations


def require_pure(caller: str, name: str, function: Callable[..., Any], like: Sequence[Any]) -> None:
    """Trace `function` twice and refuse what a derivative check cannot make sense of.

    Raises:
        ValueError: side effects, a random key made inside, or two traces that differ.
    """
    # a new function each time: JAX remembers the traces of those that it has seen
    first, second = (jax.make_jaxpr(lambda *args: function(*args))(*like) for _ in range(2))
    if first.effects:
        effects = ", ".join(sorted(type(effect).__name__ for effect in first.effects))
        raise ValueError(
            f"{caller}: {name} has side effects ({effects}); remove callbacks and debug prints before checking it"
        )
    if any(eqn.primitive.name == "random_seed" for eqn in all_equations(first.jaxpr)):
        raise ValueError(
            f"{caller}: {name} makes a random key inside (jax.random.key or PRNGKey); "
            "pass the key as an argument, so that the function and its reference draw the same numbers"
        )
    if _fingerprint(first) != _fingerprint(second):
        raise ValueError(
            f"{caller}: {name} is not a pure function: tracing it twice gave two different programs "
            "(a random number drawn in Python, or state that changes between calls?)"
        )


def _fingerprint(closed: Any) -> list[Any]:
    """The primitives, types and numbers of a program, without the identities of its variables."""
    numbers: list[Any] = [_bytes(const) for const in closed.consts]
    for eqn in all_equations(closed.jaxpr):
        numbers.append((eqn.primitive.name, *(str(var.aval) for var in eqn.outvars)))
        numbers += [_bytes(atom.val) for atom in eqn.invars if isinstance(atom, jex.Literal)]
    return numbers


def _bytes(value: Any) -> Any:
    is_key = jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key)
    if isinstance(value, jax.core.Tracer) or is_key:
        return None
    return np.asarray(value).tobytes()
