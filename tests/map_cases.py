"""The registry of maps: each as parameters in float64, the map made of them, and its matrix written out by hand.

`matrix(params, f)` is built without the library, from `f` of each part's entries: `f = identity` gives the matrix
and `f = abs` the matrix of magnitudes that rounding errors are measured against.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ffn_jax as fj

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
DTYPES = ("float64", "float32", "bfloat16")
LENGTH = 4


@dataclasses.dataclass(frozen=True)
class MapCase:
    """One way of making a linear map."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    make: Callable[[dict[str, Any]], fj.LinearMap]
    matrix: Callable[..., jax.Array]

    def params(self, seed: int = 0, dtype: str = "float64") -> dict[str, jax.Array]:
        """Random parameters, rounded to `dtype`."""
        rng = np.random.default_rng([seed, *map(ord, self.name)])
        return {k: jnp.asarray(rng.standard_normal(s) / np.sqrt(3)).astype(dtype) for k, s in self.shapes.items()}


def _rows(W: Any, n: int) -> Any:
    """The matrix of x -> x @ W for a weight `(*in, *out)` with prod(in) = n."""
    return W.reshape(n, -1).T


def _block_diag(*blocks: Any) -> Any:
    m, n = sum(B.shape[0] for B in blocks), sum(B.shape[1] for B in blocks)
    out, row, col = jnp.zeros((m, n), blocks[0].dtype), 0, 0
    for B in blocks:
        out = out.at[row : row + B.shape[0], col : col + B.shape[1]].set(B)
        row, col = row + B.shape[0], col + B.shape[1]
    return out


def _x_times_w(W: Any, x: Any) -> Any:
    return x @ W


def _w_times_x(W: Any, x: Any) -> Any:
    return W @ x


def _transpose_by_hand(W: Any, y: Any) -> Any:
    return jnp.einsum("io,o->i", W, y)


def _params_vjp_by_hand(W: Any, x: Any, ybar: Any) -> Any:
    return jnp.outer(x, ybar)


def _batched_params_vjp(W: Any, x: Any, ybar: Any) -> Any:
    return jnp.einsum("bi,bo->io", x, ybar)


def _batched_transpose(W: Any, y: Any) -> Any:
    return y @ W.T


def _convolution(k: Any, x: Any) -> Any:
    return jnp.convolve(x, k)


def _neighbours(x: Any) -> Any:
    return x[:-1] * x[1:]


def _neighbours_matrix(p: dict[str, Any], f: Any) -> Any:
    x = p["x"]
    n = x.shape[0]
    i = np.arange(n - 1)
    return jnp.zeros((n - 1, n), x.dtype).at[i, i].set(f(x[1:])).at[i, i + 1].set(f(x[:-1]))


CASES = [
    MapCase("dense", {"W": (3, 5)}, lambda p: fj.Dense(p["W"]), lambda p, f: f(p["W"]).T),
    MapCase("dense_out_in", {"W": (5, 3)}, lambda p: fj.Dense(p["W"], layout="out_in"), lambda p, f: f(p["W"])),
    MapCase(
        "dense_axes",
        {"W": (2, 3, 2, 2)},
        lambda p: fj.Dense(p["W"], in_ndim=2),
        lambda p, f: _rows(f(p["W"]), 6),
    ),
    MapCase(
        "dense_axes_out_in",
        {"W": (4, 2, 3)},
        lambda p: fj.Dense(p["W"], in_ndim=2, layout="out_in"),
        lambda p, f: f(p["W"]).reshape(4, 6),
    ),
    MapCase(
        "time_distributed",
        {"W": (3, 5)},
        lambda p: fj.TimeDistributed(fj.Dense(p["W"]), LENGTH),
        lambda p, f: jnp.kron(jnp.eye(LENGTH), f(p["W"]).T),
    ),
    MapCase(
        "block_diagonal",
        {"U": (2, 3), "V": (1, 2)},
        lambda p: fj.BlockDiagonal([fj.Dense(p["U"]), fj.Dense(p["V"], layout="out_in")]),
        lambda p, f: _block_diag(f(p["U"]).T, f(p["V"])),
    ),
    MapCase(
        "block_diagonal_stacked",
        {"W": (2, 3, 2)},
        lambda p: fj.BlockDiagonal(fj.Dense(p["W"])),
        lambda p, f: _block_diag(f(p["W"][0]).T, f(p["W"][1]).T),
    ),
    MapCase(
        "linear_map",
        {"W": (5, 3)},
        lambda p: fj.linear_map(_w_times_x, 3, params=p["W"]),
        lambda p, f: f(p["W"]),
    ),
    MapCase(
        "linear_map_by_hand",
        {"W": (3, 5)},
        lambda p: fj.linear_map(
            _x_times_w, (3,), params=p["W"], transpose=_transpose_by_hand, params_vjp=_params_vjp_by_hand
        ),
        lambda p, f: f(p["W"]).T,
    ),
    MapCase(
        "linear_map_batched",
        {"W": (3, 5)},
        lambda p: fj.linear_map(
            _x_times_w,
            (3,),
            params=p["W"],
            transpose=_batched_transpose,
            params_vjp=_batched_params_vjp,
            batched=True,
        ),
        lambda p, f: f(p["W"]).T,
    ),
    MapCase(
        "convolution",
        {"k": (2,)},
        lambda p: fj.linear_map(_convolution, (4,), params=p["k"]),
        lambda p, f: jnp.stack([jnp.convolve(e, f(p["k"])) for e in jnp.eye(4)], axis=1),
    ),
    MapCase("linearize", {"x": (4,)}, lambda p: fj.linearize(_neighbours, p["x"]), _neighbours_matrix),
    MapCase(
        "composed",
        {"U": (3, 4), "V": (4, 5)},
        lambda p: fj.Dense(p["V"]) @ fj.Dense(p["U"]),
        lambda p, f: f(p["V"]).T @ f(p["U"]).T,
    ),
    MapCase(
        "lora",
        {"W": (3, 5), "A": (3, 2), "B": (2, 5)},
        lambda p: fj.Dense(p["W"]) + 0.5 * (fj.Dense(p["B"]) @ fj.Dense(p["A"])),
        lambda p, f: f(p["W"]).T + 0.5 * f(p["B"]).T @ f(p["A"]).T,
    ),
    MapCase(
        "scaled",
        {"c": (), "W": (3, 5)},
        lambda p: -(p["c"] * fj.Dense(p["W"])),
        lambda p, f: -f(p["c"]) * f(p["W"]).T,
    ),
    MapCase(
        "transposed",
        {"k": (3,)},
        lambda p: fj.linear_map(_convolution, (4,), params=p["k"]).T,
        lambda p, f: jnp.stack([jnp.convolve(e, f(p["k"])) for e in jnp.eye(4)]),
    ),
]

BY_NAME = {case.name: case for case in CASES}


def identity(a: Any) -> Any:
    """The f of the matrix itself."""
    return a


def to64(tree: Any) -> Any:
    """Every floating leaf in float64, exactly."""
    return jax.tree.map(lambda a: jnp.asarray(a).astype("float64"), tree)


def error_bound(dtype: str, terms: int, magnitude: Any) -> Any:
    """What rounding may do to sums of `terms` products whose magnitudes sum to `magnitude`.

    A few roundings in the dtype itself (casts, scalings, parts of a composition) and one for each term in the dtype
    of the accumulator; factor 2 for good measure.
    """
    accumulator = max(UNIT["float32"], UNIT["float64"]) if dtype in ("bfloat16", "float16") else UNIT[dtype]
    return 2 * (8 * UNIT[dtype] + terms * accumulator) * magnitude + 1e-300
