"""The theorems that `python -m ffn_jax prove` proves.

An entry is a name and a function that returns (fun, reference, argument specifications); nothing is traced
before it is called.  The package's rules are entered here.
"""

from collections.abc import Callable, Sequence
from typing import Any

Theorem = tuple[str, Callable[[], tuple[Callable[..., Any], Callable[..., Any], Sequence[Any]]]]

THEOREMS: list[Theorem] = []
