"""The feed-forward sublayer as a graph: the seed's own construction, with one certificate per node."""

from typing import TYPE_CHECKING

from ffn_jax.activations import gelu
from ffn_jax.graph._graph import Graph
from ffn_jax.graph._nodes import add, affine, elementwise, norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax import Array
    from jax.typing import ArrayLike

    from ffn_jax.activations import Activation
    from ffn_jax.maps import LinearMap
    from ffn_jax.norms import LayerNorm, RMSNorm


def ffn_residual_graph(
    A1: "LinearMap",
    b1: "ArrayLike | None",
    A2: "LinearMap",
    b2: "ArrayLike | None",
    *,
    activation: "Activation | Callable[[Array], Array]" = gelu,
    norm: "LayerNorm | RMSNorm | None" = None,
    norm_first: bool = True,
) -> Graph:
    """The graph of `ffn_residual`: nodes hidden_pre, hidden_act, projected and output on the input x.

    One token or a sequence: what x may be is up to the maps, and biases may be of the full output shape. With a norm
    there is one node more, "normed", in front (pre-norm) or "summed" behind the sum (post-norm).

    Args and errors are those of `ffn_residual`, but the maps must be `LinearMap`s.

    Source: TorchLean, `ffnResidualGraph` and `seqFfnResidualGraph`.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.Dense(jnp.eye(2))
    >>> graph = fj.graph.ffn_residual_graph(A, None, A, None, activation=fj.relu)
    >>> list(graph.evaluate({"x": jnp.array([-1.0, 2.0])}))
    ['x', 'hidden_pre', 'hidden_act', 'projected', 'output']
    """
    graph, read = Graph("x"), "x"
    if norm is not None and norm_first:
        graph, read = graph.add("normed", _norm(norm), "x"), "normed"
    graph = (
        graph.add("hidden_pre", affine(A1, b1), read)
        .add("hidden_act", elementwise(activation), "hidden_pre")
        .add("projected", affine(A2, b2), "hidden_act")
    )
    if norm is None or norm_first:
        return graph.add("output", add(), "x", "projected")
    return graph.add("summed", add(), "x", "projected").add("output", _norm(norm), "summed")


_norm = norm
