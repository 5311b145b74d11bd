"""Derived error bounds: see `_model` for the mathematics and `_interpreter` for the analysis."""

from ffn_jax.verify._bounds._interpreter import bounds_of as bounds_of
from ffn_jax.verify._bounds._interpreter import unsupported_primitives as unsupported_primitives
from ffn_jax.verify._bounds._model import Model as Model
from ffn_jax.verify._bounds._model import Precision as Precision
from ffn_jax.verify._bounds._registry import UnsupportedPrimitiveError as UnsupportedPrimitiveError
