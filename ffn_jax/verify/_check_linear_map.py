"""`check_linear_map`: is a map linear, and do its transpose and parameter pullback belong to it?

Each property is an equation between two programs, compared as `check_vjp` compares a rule with its reference:

    additivity     A(x + x') = A(x) + A(x')               matrix     A(x) = matrix of A · x
    homogeneity    A(c x) = c A(x)                        batch      A of a batch = A of each
    zero           A(0) = 0, exactly                      vmap       jax.vmap(A) of a batch = A of each
    transpose      A.T(y) = linear_transpose(A)(y)        jit        A run eagerly = A compiled
    adjoint        ⟨A x, y⟩ = ⟨x, A.T y⟩                  parameters params_vjp(x, ȳ) = vjp of A in its leaves
    double         A.T.T(x) = A(x)

A(0) is compared with zero without any tolerance: that is what sees an affine constant far below the weights,
which `jax.linear_transpose` drops in silence.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax.verify._compare import Comparison, Gate, Quantity, Side
from ffn_jax.verify._draws import KINDS, Leaf, draw_inputs, generator, shape_dtype
from ffn_jax.verify._linear_like import LinearLike, float_dtypes, linear_like, with_dtype
from ffn_jax.verify._progress import Progress
from ffn_jax.verify._report import LinearMapReport, Row
from ffn_jax.verify._strip import strip_custom_rules

_BATCH = 3
_MATRIX_SIZE = 4096


@dataclasses.dataclass(frozen=True)
class _Claim:
    """Two functions of (A, x, x', c, y, X, Y) that should be equal; X and Y are batches."""

    what: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    exact: bool = False


def check_linear_map(
    A: Any,
    *,
    key: Any = None,
    in_shape: Sequence[int] | None = None,
    dtypes: Sequence[Any] | None = None,
    draws: Sequence[str] = KINDS[1:],
    raises: bool = True,
    progress: bool | None = None,
) -> LinearMapReport:
    """Check that a map is linear and that its transpose and parameter pullback are right.

    Args:
        A: a `LinearMap`; or a callable of one array of shape `in_shape`; or a lineax operator.
        key: a JAX key or an integer that the inputs are drawn from.
        in_shape: the shape that a bare callable takes.
        dtypes: float dtypes to run in beside float64; default: that of the map's leaves, else float32.
        draws: which kinds of inputs to draw: some of "normal", "tails", "zeros", "subnormal".
        raises: raise if the check fails; otherwise return the report all the same.
        progress: show progress on standard error; default: on a terminal, after two seconds.

    Returns:
        A report with a row for each property under each gate.

    Raises:
        VerificationError: a property does not hold within its derived tolerance.
        TypeError: `A` is not a map of one array.
        ValueError: a bare callable without `in_shape`.

    >>> import jax.numpy as jnp
    >>> from ffn_jax import verify
    >>> verify.check_linear_map(lambda x: 2.0 * x[::-1], in_shape=(3,)).ok
    True
    >>> verify.check_linear_map(lambda x: 2.0 * x + 1e-30, in_shape=(3,), raises=False).failures[0].what
    'zero'
    """
    bar = Progress("check_linear_map", progress)
    own = float_dtypes(A) or ["float32"]
    like = linear_like(A, in_shape, jnp.dtype(own[0]))
    names = own[:1] if dtypes is None else [jnp.dtype(dtype).name for dtype in dtypes]
    wide = jnp.dtype("float64")
    groups = [[Gate(wide, False, "float64")]]
    groups += [[Gate(jnp.dtype(name), True, name)] for name in names if name != "float64"]
    rows: dict[tuple[str, str, str], Row] = {}
    notes = [f"the object does not offer {name}, so that is not checked" for name in like.skipped]
    try:
        for gates in groups:
            bar(f"compiling for {gates[0].name}")
            try:
                found = _check_in(gates, like, generator(key), draws, bar)
            except _NoFloat64 as refusal:
                if len(groups) == 1:
                    raise TypeError(str(refusal)) from refusal.__cause__
                notes.append(f"no float64 gate: {refusal}")
                continue
            for row in found:
                place = (row.gate, row.what, row.where)
                rows[place] = rows[place].merged(row) if place in rows else row
    finally:
        bar.close()
    statement = f"{like.in_shape} -> {like.out_shape}: linearity, transpose, parameters, batches"
    ordered = sorted(rows.values(), key=lambda row: row.gate != "float64 deterministic" and 1 + (row.gate[5] != "6"))
    report = LinearMapReport(
        f"check_linear_map({type(A).__name__})", statement, tuple(ordered), tuple(notes), bar.seconds
    )
    if raises:
        report.raise_if_failed()
    return report


class _NoFloat64(Exception):  # noqa: N818
    """The map does not run on float64 inputs."""


def _check_in(
    gates: Sequence[Gate], like: LinearLike, rng: np.random.Generator, draws: Sequence[str], bar: Progress
) -> list[Row]:
    dtype = gates[0].dtype
    vectors = {"x": like.in_shape, "x'": like.in_shape, "c": (), "y": like.out_shape}
    vectors |= {"X": (_BATCH, *like.in_shape), "Y": (_BATCH, *like.out_shape)}
    leaves = [Leaf(name, shape, dtype) for name, shape in vectors.items()]
    with gates[0].types():
        A = with_dtype(like.subject, dtype)
        arrays, rebuild = _parameters(A)
        inputs = [shape_dtype(leaf.shape, dtype) for leaf in leaves]
        try:
            jax.eval_shape(lambda arrays, x: like.apply(rebuild(arrays), x), arrays, inputs[0])
        except Exception as error:
            if dtype != jnp.float64:
                raise
            raise _NoFloat64(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        claims, rows = [], []
        for claim in _claims(like):
            try:
                sides = [
                    jax.eval_shape(lambda arrays, *v, side=side: side(rebuild(arrays), *v), arrays, *inputs)
                    for side in (claim.ours, claim.theirs)
                ]
                problem = _difference_in_form(*sides)
            except Exception as error:
                problem = f"could not be evaluated: {type(error).__name__}: {str(error).strip()}".splitlines()[0]
                if claim.what in ("transpose", "parameters"):
                    problem += " (is the map linear?)"
            if problem:
                rows += [Row(str(gate), claim.what, "", problem=problem) for gate in gates]
            else:
                claims.append((claim, sides[0]))

        def side(name: str) -> Callable[..., list[Any]]:
            def program(arrays: Any, *vectors: Any) -> list[Any]:
                map_ = rebuild(arrays)
                return [out for claim, _ in claims for out in jax.tree.leaves(getattr(claim, name)(map_, *vectors))]

            return program

        ours, theirs = Side(side("ours"), arrays, *inputs), Side(side("theirs"), arrays, *inputs)
    comparison = Comparison(ours, theirs, [q for claim, out in claims for q in _quantities(claim, out)], gates)
    eager = next((i for i, q in enumerate(comparison.quantities) if q.what == "jit"), None)
    for draw in draw_inputs(rng, leaves, draws, dtype):
        bar(f"{gates[0].name}, draw {draw.name}")

        def run_eagerly(got: list[Any], x: Any = draw.arrays[0]) -> list[Any]:
            if eager is not None:
                got[eager] = np.asarray(like.apply(A, jnp.asarray(x)))
            return got

        rows += comparison.rows((arrays, *draw.arrays), draw.name, "", run_eagerly)
    return rows


def _parameters(A: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a map, and the map again from such arrays."""
    leaves, tree = jax.tree.flatten(A)
    where = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype") and hasattr(leaf, "shape")]

    def rebuild(arrays: Sequence[Any]) -> Any:
        full = list(leaves)
        for i, array in zip(where, arrays, strict=True):
            full[i] = array
        return jax.tree.unflatten(tree, full)

    return [leaves[i] for i in where], rebuild


def _quantities(claim: _Claim, outs: Any) -> list[Quantity]:
    paths = jax.tree_util.tree_flatten_with_path(outs)[0]
    return [Quantity(claim.what, jax.tree_util.keystr(path), exact=claim.exact) for path, _ in paths]


def _difference_in_form(ours: Any, theirs: Any) -> str:
    shapes = [[leaf.shape for leaf in jax.tree.leaves(side)] for side in (ours, theirs)]
    return "" if shapes[0] == shapes[1] else f"got shape {shapes[0]}, expected {shapes[1]}"


def _claims(like: LinearLike) -> list[_Claim]:
    """The properties that this object can be asked about."""
    apply, plain = like.apply, like.plain

    def each(A: Any, X: Any) -> Any:
        return jnp.stack([apply(A, X[i]) for i in range(X.shape[0])])

    claims = [
        _Claim("zero", lambda A, x, *_: apply(A, x * 0 + 0), lambda A, x, *_: apply(A, x) * 0, exact=True),
        _Claim(
            "additivity",
            lambda A, x, x2, *_: apply(A, x + x2),
            lambda A, x, x2, *_: apply(A, x) + apply(A, x2),
        ),
        _Claim("homogeneity", lambda A, x, _, c, *__: apply(A, c * x), lambda A, x, _, c, *__: c * apply(A, x)),
        _Claim("jit", lambda A, x, *_: apply(A, x), lambda A, x, *_: apply(A, x)),
        _Claim("vmap", lambda A, *v: jax.vmap(lambda x: apply(A, x))(v[4]), lambda A, *v: each(A, v[4])),
    ]
    if like.batched:
        claims.append(_Claim("batch", lambda A, *v: apply(A, v[4]), lambda A, *v: each(A, v[4])))
    if like.as_matrix is not None and math.prod(like.in_shape) * math.prod(like.out_shape) <= _MATRIX_SIZE:
        as_matrix = like.as_matrix
        claims.append(
            _Claim(
                "matrix",
                lambda A, x, *_: apply(A, x),
                lambda A, x, *_: (as_matrix(A).astype(x.dtype) @ x.reshape(-1)).reshape(like.out_shape),
            )
        )
    if like.transpose is not None:
        claims += _transpose_claims(like, like.transpose)
    if like.params_vjp is not None:
        pullback = like.params_vjp
        claims.append(
            _Claim(
                "parameters",
                lambda A, *v: _float_leaves(A, pullback(A, v[4], v[5])),
                lambda A, *v: _plain_parameter_pullback(plain, A, v[4], v[5]),
            )
        )
    return claims


def _transpose_claims(like: LinearLike, transpose: Callable[[Any], Any]) -> list[_Claim]:
    apply = like.apply

    def oracle(A: Any, x: Any, y: Any) -> Any:
        return jax.linear_transpose(strip_custom_rules(lambda x: like.plain(A, x)), x)(y)[0]

    def dot(a: Any, b: Any) -> Any:
        return jnp.sum(a * b)

    claims = [
        _Claim("transpose", lambda A, *v: apply(transpose(A), v[3]), lambda A, *v: oracle(A, v[0], v[3])),
        _Claim(
            "adjoint",
            lambda A, *v: dot(apply(A, v[0]), v[3]),
            lambda A, *v: dot(v[0], apply(transpose(A), v[3])),
        ),
        _Claim("double", lambda A, x, *_: apply(transpose(transpose(A)), x), lambda A, x, *_: apply(A, x)),
    ]
    if like.batched:
        claims.append(
            _Claim(
                "batch.T",
                lambda A, *v: apply(transpose(A), v[5]),
                lambda A, *v: jnp.stack([apply(transpose(A), y) for y in v[5]]),
            )
        )
    return claims


def _float_leaves(A: Any, cotangents: Any) -> list[Any]:
    """The cotangents of the float leaves, in the order of the map's leaves."""
    pairs = zip(jax.tree.leaves(A), jax.tree.leaves(cotangents), strict=True)
    return [cotangent for leaf, cotangent in pairs if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _plain_parameter_pullback(plain: Callable[[Any, Any], Any], A: Any, x: Any, ybar: Any) -> list[Any]:
    """The pullback of the float leaves by JAX's own reverse mode on the plain application."""
    arrays, rebuild = _parameters(A)
    where = [i for i, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating)]

    def of_floats(floats: Sequence[Any]) -> Any:
        full = list(arrays)
        for i, value in zip(where, floats, strict=True):
            full[i] = value
        return strip_custom_rules(lambda arrays, x: plain(rebuild(arrays), x))(full, x)

    return list(jax.vjp(of_floats, [arrays[i] for i in where])[1](ybar)[0])
