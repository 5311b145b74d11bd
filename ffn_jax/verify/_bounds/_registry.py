"""The table of rules, and what a rule receives.

A rule takes the equation in its context and a `Bound` for each operand and returns a `Bound` for each result.
Values are float64 stand-ins for the exact numbers whatever the dtype of the equation; only the errors know
the dtype.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ffn_jax.verify._bounds._model import Bound, Error, Model, Precision

Rule = Callable[["Context", Sequence[Bound]], list[Bound]]
RULES: dict[str, Rule] = {}
_SCATTERS = {"scatter": lax.scatter, "scatter-add": lax.scatter_add}


class UnsupportedPrimitiveError(NotImplementedError):
    """A primitive whose rounding error the verifier cannot bound."""

    def __init__(self, primitive: str) -> None:
        self.primitive = primitive
        super().__init__(
            f"check_vjp: no error bound is known for the primitive '{primitive}' of the reference; write the reference "
            "without it, or check the part around it"
        )


@dataclasses.dataclass(frozen=True)
class Context:
    """An equation and the model of rounding under which it is bounded."""

    eqn: Any
    model: Model

    @property
    def params(self) -> dict[str, Any]:
        """The equation's parameters."""
        return dict(self.eqn.params)

    @property
    def precision(self) -> Precision:
        """The constants of the first result's dtype."""
        return Precision.of(self.eqn.outvars[0].aval.dtype)

    def evaluate(self, *operands: Any, **overrides: Any) -> Any:
        """The equation's primitive on other operands, with its float dtypes at float64."""
        name = self.eqn.primitive.name
        if name in _SCATTERS:  # these carry their update as a jaxpr in the dtype of the equation
            options = {key: value for key, value in self.eqn.params.items() if not key.startswith("update_")}
            return _SCATTERS[name](*operands, **options)
        params = {key: _widened(key, value) for key, value in self.eqn.params.items()}
        return self.eqn.primitive.bind(*operands, **(params | overrides))

    def rounding(self, value: Any, units: Any = 1.0) -> Error:
        """The error of rounding `value` to the result's dtype, times `units`; infinities are exact."""
        p = self.precision
        return self.model.rounding(jnp.where(jnp.isinf(value), 0.0, units * p.u * jnp.abs(value) + p.smallest))


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for the primitives of these names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def is_float(value: Any) -> bool:
    """Whether an array has a float dtype."""
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))


def anywhere(error: Error) -> jax.Array:
    """Whether any entry has an error at all (a scalar)."""
    return jnp.any(jnp.asarray(error.total()) != 0)


def unknown_where(condition: Any, shape: Sequence[int]) -> Error:
    """An infinite error where the condition (broadcast to `shape`) holds."""
    return Error(jnp.broadcast_to(jnp.where(condition, jnp.inf, 0.0), tuple(shape)))


def _widened(key: str, value: Any) -> Any:
    names_a_dtype = key in ("new_dtype", "preferred_element_type", "dtype")
    if names_a_dtype and value is not None and jnp.issubdtype(value, jnp.floating):
        return jnp.dtype("float64")
    return value
