"""The feed-forward sublayer as pure functions: `ffn_residual`, `ffn`, their tape and their reference.

    y = x + A2 σ(A1 x + b1) + b2

A1 and A2 are any `LinearMap`s, or bare callables on the whole array; σ is any activation. This module checks
what it is given and says what it does; the equations stand in `ffn_jax._rule`.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax import _fast, _rule, norms
from ffn_jax._activation_rule import PairRule, activation_rule
from ffn_jax._blocks import Blocks
from ffn_jax._checks import check_floating, check_same_dtype, is_size, size, trailing
from ffn_jax._chunks import Tokens
from ffn_jax._mesh import check_devices, check_unsharded_tokens, vary_together
from ffn_jax._rule import Config, FFNTape, Params
from ffn_jax.activations import Activation, gelu
from ffn_jax.dropout import Dropout
from ffn_jax.dropout import prepare as prepare_dropout
from ffn_jax.maps import BlockDiagonal, Dense, LinearMap, TimeDistributed
from ffn_jax.maps._algebra import Composed, Scaled, Sum, Transposed
from ffn_jax.maps._function import lift
from ffn_jax.maps._time_distributed import per_token
from ffn_jax.norms import LayerNorm, RMSNorm
from ffn_jax.sharding._parallel import RowParallel, cross

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jax import Array
    from jax.typing import ArrayLike

    Linear = LinearMap | Callable[[Array], Array]
    AnyActivation = Activation | Callable[[Array], Array]

SAVEABLE = ("hidden_pre", "hidden_act")


class Extras(NamedTuple):
    """What may stand around the two maps, as the user gave it."""

    norm: LayerNorm | RMSNorm | None
    norm_first: bool
    dropout: Dropout | None


def ffn_residual(
    x: "ArrayLike",
    A1: "Linear",
    b1: "ArrayLike | None",
    A2: "Linear",
    b2: "ArrayLike | None",
    *,
    activation: "AnyActivation" = gelu,
    norm: "LayerNorm | RMSNorm | None" = None,
    norm_first: bool = True,
    dropout: "Dropout | None" = None,
    save: "Sequence[str]" = ("hidden_pre",),
    chunk_size: "int | Literal['none'] | None" = None,
    hidden_chunk_size: int | None = None,
) -> "Array":
    """y = x + A2 σ(A1 x + b1) + b2, with a reverse rule that keeps what you choose.

    Args:
      x: tokens, `(*batch, *A1.in_shape)`: one token `(d_model,)`, a sequence `(seq, d_model)`, any batch of them.
      A1: the first linear map, a `LinearMap`, or a callable that is given all of x.
      b1: its bias, of any shape that broadcasts to A1's output (one per position included), or None.
      A2: the second linear map, back to x's shape.
      b2: its bias, likewise.
      activation: `gelu` (tanh form) and its siblings, `ffn_jax.activation(...)` with a derivative of your own, or
        any plain function of one token's hidden features. Gated units take a hidden of shape `(..., 2, d_ff)`.
      norm: a `LayerNorm` or `RMSNorm` over the last axis.
      norm_first: whether it stands before the sublayer, y = x + ffn(norm(x)) (pre-norm, as in GPT-2 and ViT), or after
        the sum, y = norm(x + ffn(x)) (post-norm, as in BERT). Before, its result is not kept but computed again;
        after, its input x + ffn(x) is kept too.
      dropout: `ffn_jax.Dropout(rate, key, on="output" | "hidden" | "both")`, or None; the mask is never kept.
      save: what the backward pass keeps besides x, of "hidden_pre" and "hidden_act"; the rest is computed again.
        `("hidden_pre",)` repeats no matrix product, `()` repeats one and keeps x alone.
      chunk_size: how many tokens (entries of the leading axes) are worked on at a time, so that with `save=()`
        the hidden tensor never exists whole; need not divide the tokens. "none": all at once, always. None: chosen
        by a rule: near 512 from 2048 tokens on, where one CPU device does the work, both maps are products
        (`Dense` and what is built of it) and no bias varies over the tokens; all at once otherwise.
      hidden_chunk_size: how many hidden features are worked on at a time, a divisor of d_ff; both maps must be
        `Dense`, the activation an `Activation`. The hidden tensor never exists whole then either, and weight
        cotangents are written once, not accumulated. None: all at once.

    Returns:
      y, of x's shape and dtype. Half-precision products accumulate in float32, and parameter cotangents are
      summed in float32 before the cast to their parameter's dtype.

    Raises:
      TypeError, ValueError: an argument is of the wrong kind, shape or dtype; the message says what was
        expected and what was got. `jax.jvp` raises TypeError: for forward mode use `ffn_residual_reference`.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 2, with the residual connection of section 3.1; pre-norm and
    post-norm as in Xiong et al. 2020 (arXiv:2002.04745), table 1; the rule is TorchLean's
    `seqFfnResidual_backpropVec_eq_adjoint_fderiv`.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> x = jax.random.normal(keys[0], (4, 8), "float32")
    >>> A1 = fj.Dense(jax.random.normal(keys[1], (8, 32), "float32"))
    >>> A2 = fj.Dense(jax.random.normal(keys[2], (32, 8), "float32"))
    >>> loss = lambda A1, A2: jnp.sum(fj.ffn_residual(x, A1, None, A2, None) ** 2)
    >>> jax.jit(jax.grad(loss))(A1, A2)
    Dense((8,) -> (32,), float32, in_out)
    """
    extras = Extras(norm, norm_first, dropout)
    return _sublayer("ffn_residual", True, x, A1, b1, A2, b2, activation, extras, save, chunk_size, hidden_chunk_size)


def ffn(
    x: "ArrayLike",
    A1: "Linear",
    b1: "ArrayLike | None",
    A2: "Linear",
    b2: "ArrayLike | None",
    *,
    activation: "AnyActivation" = gelu,
    norm: "LayerNorm | RMSNorm | None" = None,
    norm_first: bool = True,
    dropout: "Dropout | None" = None,
    save: "Sequence[str]" = ("hidden_pre",),
    chunk_size: "int | Literal['none'] | None" = None,
    hidden_chunk_size: int | None = None,
) -> "Array":
    """A2 σ(A1 x + b1) + b2: `ffn_residual` without "x +". A2's output may have another shape than x.

    Arguments, errors and source are those of `ffn_residual`.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.Dense(jnp.eye(2))
    >>> fj.ffn(jnp.array([-1.0, 2.0]), A, None, A, None, activation=fj.relu).tolist()
    [0.0, 2.0]
    """
    extras = Extras(norm, norm_first, dropout)
    return _sublayer("ffn", False, x, A1, b1, A2, b2, activation, extras, save, chunk_size, hidden_chunk_size)


def ffn_residual_tape(
    x: "ArrayLike",
    A1: "Linear",
    b1: "ArrayLike | None",
    A2: "Linear",
    b2: "ArrayLike | None",
    *,
    activation: "AnyActivation" = gelu,
    norm: "LayerNorm | RMSNorm | None" = None,
    norm_first: bool = True,
    dropout: "Dropout | None" = None,
) -> FFNTape:
    """All that `ffn_residual` computes: (hidden_pre, hidden_act, projected, output).

    Its VJP takes a seed on each of the four: a penalty on the hidden activations is a term of the loss. For a seed
    on the input too, differentiate `lambda x: (x, ffn_residual_tape(x, ...))`.

    Arguments, errors and source are those of `ffn_residual`.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.Dense(jnp.eye(2))
    >>> def loss(x):
    ...     tape = fj.ffn_residual_tape(x, A, None, A, None, activation=fj.relu)
    ...     return jnp.sum(tape.output) + 0.5 * jnp.sum(jnp.abs(tape.hidden_act))
    >>> jax.grad(loss)(jnp.array([-1.0, 2.0])).tolist()
    [1.0, 2.5]
    """
    extras = Extras(norm, norm_first, dropout)
    config, x, params, _, whole = _prepare("ffn_residual_tape", True, x, A1, b1, A2, b2, activation, extras)
    tape = _rule.sublayer_tape(config, x, params)
    if whole.out is not None:
        projected = _finish(whole, None, tape.projected)
        tape = tape._replace(projected=projected, output=whole.x + projected)
    return tape._replace(output=_after(extras, tape.output))


def ffn_residual_reference(
    x: "ArrayLike",
    A1: "Linear",
    b1: "ArrayLike | None",
    A2: "Linear",
    b2: "ArrayLike | None",
    *,
    activation: "AnyActivation" = gelu,
    norm: "LayerNorm | RMSNorm | None" = None,
    norm_first: bool = True,
    dropout: "Dropout | None" = None,
) -> "Array":
    """`ffn_residual` in undecorated JAX: the reference that the rule is compared with.

    It has every derivative that JAX has, forward mode included: use it with `jax.jvp`, `jacfwd` and `hessian`.

    Arguments, errors and source are those of `ffn_residual`.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.Dense(jnp.eye(2))
    >>> f = lambda x: fj.ffn_residual_reference(x, A, None, A, None, activation=fj.relu)
    >>> jax.jvp(f, (jnp.array([-1.0, 2.0]),), (jnp.ones(2),))[1].tolist()
    [1.0, 2.0]
    """
    extras = Extras(norm, norm_first, dropout)
    return _reference("ffn_residual_reference", True, x, A1, b1, A2, b2, activation, extras)


def ffn_reference(
    x: "ArrayLike",
    A1: "Linear",
    b1: "ArrayLike | None",
    A2: "Linear",
    b2: "ArrayLike | None",
    *,
    activation: "AnyActivation" = gelu,
    norm: "LayerNorm | RMSNorm | None" = None,
    norm_first: bool = True,
    dropout: "Dropout | None" = None,
) -> "Array":
    """`ffn` in undecorated JAX, as `ffn_residual_reference` is of `ffn_residual`.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.Dense(jnp.eye(2))
    >>> jax.jacfwd(lambda x: fj.ffn_reference(x, A, None, A, None, activation=fj.relu))(jnp.array([-1.0, 2.0])).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    return _reference("ffn_reference", False, x, A1, b1, A2, b2, activation, Extras(norm, norm_first, dropout))


# ------------------------------------------------------------------------------------- what is checked


def _sublayer(
    where: str,
    residual: bool,
    x: Any,
    A1: Any,
    b1: Any,
    A2: Any,
    b2: Any,
    activation: Any,
    extras: Extras,
    save: Any,
    chunk_size: Any,
    hidden_chunk_size: Any,
) -> "Array":
    save, chunk_size = _check_save(save, where), _check_chunk_size(chunk_size, where)
    config, x, params, h, whole = _prepare(where, residual, x, A1, b1, A2, b2, activation, extras)
    config = config._replace(save=save)
    if hidden_chunk_size is not None:
        config, params = _in_blocks(config, params, hidden_chunk_size, where)
    if chunk_size is None:
        chunk_size = "none" if config.blocks else _chosen_chunk_size(x, h, params)
    if chunk_size != "none":
        check_unsharded_tokens(x, where, chunk_size)
        config, params = _chunked(config, x, h, params, chunk_size, where)
    y: Array = _rule.sublayer(config, x, params)
    return _after(extras, y if whole.out is None else _finish(whole, whole.x if residual else None, y))


def _reference(
    where: str, residual: bool, x: Any, A1: Any, b1: Any, A2: Any, b2: Any, activation: Any, extras: Extras
) -> "Array":
    config, x, params, _, whole = _prepare(where, residual, x, A1, b1, A2, b2, activation, extras)
    y = _rule.evaluate(config, x, params, undecorated=True).output
    if whole.out is not None:
        y = _rule.finish_undecorated(whole.x if residual else None, whole.out.leave(y), whole.b2)
    return _after(extras, y, undecorated=True)


class _Whole(NamedTuple):
    """What acts after the devices' parts of a sharded sublayer are summed; `out` is None where nothing is cut."""

    x: "Array"
    out: RowParallel | None
    b2: "Array | None"


def _finish(whole: _Whole, x: "Array | None", u: "Array") -> "Array":
    assert whole.out is not None
    y: Array = _rule.finish(*vary_together(x, whole.out.leave(u), whole.b2))
    return y


def _after(extras: Extras, y: "Array", undecorated: bool = False) -> "Array":
    """The post-norm of y, where there is one."""
    if extras.norm is None or extras.norm_first:
        return y
    normalise = norms.undecorated if undecorated else norms.normalise
    y, affine = vary_together(y, extras.norm.affine)
    return normalise(extras.norm.form, y, affine)


def _prepare(
    where: str, residual: bool, x: Any, A1: Any, b1: Any, A2: Any, b2: Any, activation: Any, extras: Extras
) -> "tuple[Config, Array, Params, jax.ShapeDtypeStruct, _Whole]":
    """Checks every argument against the next, in the order in which they act, and lifts bare callables.

    A pre-norm becomes part of the rule; a post-norm is checked here and applied by `_after`.

    Returns the rule's arguments, the hidden tensor's shape after the activation, and what comes after the rule.
    """
    whole_x = x = _array(x, where, "x")
    check_devices((x, A1, b1, A2, b2), where)
    x, A1, A2, out = cross(x, A1, A2, where)
    A1 = lift(A1, x, where, "A1")
    b1, z = _affine(x, A1, b1, where, 1, "x")
    A1 = per_token(A1)
    rule, theta = activation_rule(activation, A1.out_shape, x.dtype, where)
    h = jax.eval_shape(rule.value, theta, z)
    A2 = lift(A2, h, where, "A2")
    b2, u = _affine(h, A2, b2, where, 2, f"the hidden {tuple(h.shape)}", out)
    A2 = per_token(A2)
    if residual and u.shape != whole_x.shape:
        raise ValueError(
            f"{where}: expected A2.out_shape to bring the output back to x's shape {tuple(whole_x.shape)}, "
            f"got {A2.out_shape}, which makes it {tuple(u.shape)}"
        )
    form, affine = _check_norm(extras, x, u, A1, where)
    rate, seed = prepare_dropout(extras.dropout, where)
    if out is not None and rate is not None:
        raise ValueError(
            f"{where}: expected no dropout in a sublayer that is cut over devices, whose masks would differ from the "
            f"whole one's, got {extras.dropout!r}; apply it outside of the sublayer"
        )
    inner, outer = (b2, None) if out is None else (None, b2)
    x, params = vary_together(x, Params(A1, b1, A2, inner, theta, affine, seed))
    config = Config(rule, residual and out is None, norm=form, dropout=rate)
    return config, x, params, h, _Whole(whole_x, out, outer)


def _check_norm(
    extras: Extras, x: Any, u: Any, A1: LinearMap, where: str
) -> "tuple[norms.Form | None, norms.Affine | None]":
    """The pre-norm, or two times None."""
    if not isinstance(extras.norm_first, (bool, np.bool_)):
        raise TypeError(f"{where}: expected norm_first to be True or False, got {extras.norm_first!r}")
    if extras.norm is None:
        return None, None
    norms.check_norm(extras.norm, x if extras.norm_first else u, where)
    if not extras.norm_first:
        return None, None
    if not A1.in_shape:
        raise ValueError(f"{where}: expected norm to have a feature axis of A1 to act on, got A1.in_shape ()")
    return extras.norm.form, extras.norm.affine


def _array(value: Any, where: str, name: str) -> Any:
    check_floating(value, where, name)
    return jnp.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _affine(
    x: Any, A: LinearMap, b: Any, where: str, k: int, what: str, leave: RowParallel | None = None
) -> "tuple[Array | None, jax.ShapeDtypeStruct]":
    """Checks A_k x + b_k, where `leave` sums A_k x over devices; returns the bias and the result's shape."""
    check_same_dtype(x, A.dtype, where, "x", f"A{k}")
    n = len(A.in_shape)
    if x.ndim < n or tuple(x.shape[x.ndim - n :]) != A.in_shape:
        given = f"x of shape {tuple(x.shape)}" if k == 1 else what
        raise ValueError(f"{where}: expected {given} to end in A{k}.in_shape: {trailing(A.in_shape)}")
    out = jax.ShapeDtypeStruct((*x.shape[: x.ndim - n], *A.out_shape), x.dtype)
    got = jax.eval_shape(A.apply, x)
    A.check_output(got, out, f"{where}: A{k}")
    out = got if leave is None else jax.eval_shape(leave.leave, got)
    if b is None:
        return None, out
    b = _array(b, where, f"b{k}")
    check_same_dtype(b, x.dtype, where, f"b{k}", "x")
    fits = b.ndim <= len(out.shape) and all(
        rows in (n, 1) for rows, n in zip(reversed(b.shape), reversed(out.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{where}: expected b{k} to broadcast to A{k}'s output of shape {out.shape}, got {tuple(b.shape)}"
        )
    return b, out


def _check_save(save: Any, where: str) -> tuple[str, ...]:
    if isinstance(save, str) or not isinstance(save, (tuple, list, set, frozenset)):
        raise TypeError(f"{where}: expected save to be a tuple of names out of {SAVEABLE}, got {save!r}")
    unknown = [name for name in save if name not in SAVEABLE]
    if unknown:
        raise ValueError(
            f"{where}: expected save to name tensors that the backward pass can use, {SAVEABLE}, got {unknown[0]!r}"
        )
    return tuple(name for name in SAVEABLE if name in save)


def _check_chunk_size(chunk_size: Any, where: str) -> "int | Literal['none'] | None":
    if chunk_size is None:
        return None
    if isinstance(chunk_size, str) and chunk_size == "none":
        return "none"
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, (int, np.integer)):
        raise TypeError(f"{where}: expected chunk_size to be an int (tokens), 'none' or None, got {chunk_size!r}")
    if chunk_size < 1:
        raise ValueError(f"{where}: expected chunk_size >= 1 (tokens), got {chunk_size}")
    return int(chunk_size)


def _in_blocks(config: Config, params: Params, features: Any, where: str) -> tuple[Config, Params]:
    """The same sublayer in blocks of hidden features."""
    A1, b1, A2, *_ = params
    if not is_size(features):
        raise TypeError(f"{where}: expected hidden_chunk_size to be an int (hidden features) or None, got {features!r}")
    if not (isinstance(A1, Dense) and isinstance(A2, Dense) and len(A2.in_shape) == 1 and A1.out_shape):
        raise TypeError(
            f"{where}: hidden_chunk_size needs Dense maps, A2 of one input axis, got {A1!r} and {A2!r}; "
            "chunk_size works on any maps that act on each token alone"
        )
    if config.norm is not None or config.dropout is not None:
        raise ValueError(
            f"{where}: hidden_chunk_size takes no pre-norm and no dropout, which each block would repeat; "
            "normalise x before, or use chunk_size"
        )
    if not isinstance(config.activation, PairRule):
        raise TypeError(
            f"{where}: hidden_chunk_size needs an activation of each feature alone, an Activation such as fj.gelu; "
            f"got a plain function: wrap it with ffn_jax.activation(value, value_and_derivative)"
        )
    (d_ff,) = A2.in_shape
    if features < 1 or d_ff % features:
        raise ValueError(f"{where}: expected hidden_chunk_size to divide d_ff={d_ff}, got {features}")
    if b1 is not None:  # a bias shared by all features is one for each
        b1 = jnp.broadcast_to(b1, (*b1.shape[:-1], d_ff))
    return config._replace(blocks=Blocks(features)), params._replace(b1=b1)


def _chosen_chunk_size(x: "Array", h: jax.ShapeDtypeStruct, params: Params) -> "int | Literal['none']":
    """What `chunk_size=None` means here; see `ffn_jax._fast`."""
    A1, b1, A2, b2, *_ = params
    tokens = tuple(x.shape[: x.ndim - len(A1.in_shape)])
    alone = tokens == tuple(h.shape[: h.ndim - len(A2.in_shape)])
    shared = all(b is None or b.ndim <= len(A.out_shape) for A, b in ((A1, b1), (A2, b2)))
    if not (alone and shared and _made_of_products(A1) and _made_of_products(A2)):
        return "none"
    return _fast.chunk_size(tokens) or "none"


def _made_of_products(A: Any) -> bool:
    """Whether A is `Dense`, or composed of such by this library's own algebra."""
    if not isinstance(A, (TimeDistributed, BlockDiagonal, Composed, Sum, Scaled, Transposed)):
        return isinstance(A, Dense)
    parts = jax.tree.leaves(A, is_leaf=lambda part: isinstance(part, LinearMap) and part is not A)
    return all(_made_of_products(part) for part in parts if isinstance(part, LinearMap))


def _chunked(
    config: Config, x: "Array", h: jax.ShapeDtypeStruct, params: Params, chunk_size: int, where: str
) -> tuple[Config, Params]:
    """The same sublayer in chunks of tokens, biases with all their axes."""
    if size(x.shape[:-1]) <= chunk_size:
        return config, params
    A1, A2 = params.A1, params.A2
    token_axes = x.ndim - len(A1.in_shape), h.ndim - len(A2.in_shape)
    for name, A, axes in (("A1", A1, token_axes[0]), ("A2", A2, token_axes[1])):
        if axes < max(1, *token_axes):
            raise ValueError(
                f"{where}: chunk_size={chunk_size} needs maps that act on each token alone, but {name} "
                f"({A.in_shape} -> {A.out_shape}) spans the token axes of x {tuple(x.shape)}; "
                "leave chunk_size out, or give a map per token"
            )
    shape = tuple(x.shape[: token_axes[0]])
    if size(shape) <= chunk_size:
        return config, params
    b1 = _all_axes(params.b1, len(shape) + len(A1.out_shape))
    b2 = _all_axes(params.b2, len(shape) + len(A2.out_shape))
    return config._replace(tokens=Tokens(shape, chunk_size)), params._replace(b1=b1, b2=b2)


def _all_axes(b: "Array | None", ndim: int) -> "Array | None":
    return None if b is None else b.reshape((1,) * (ndim - b.ndim) + b.shape)
