"""check_linear_map: linear maps pass; affine, non-linear and mistransposed ones do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from map_cases import CASES

import ffn_jax as fj
from ffn_jax.verify import VerificationError, check_linear_map

W = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), "float32")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_map_of_the_package(case):
    report = check_linear_map(case.make(case.params()))
    checked = {row.what for row in report.rows}
    assert checked >= {"zero", "additivity", "transpose", "adjoint", "double", "batch", "vmap", "jit", "matrix"}


def test_half_precision_map():
    report = check_linear_map(fj.Dense(W), dtypes=("bfloat16",))
    assert {row.gate for row in report.rows} == {"float64 deterministic", "bfloat16 six-sigma"}
    assert "parameters" in {row.what for row in report.rows}


def failed(A, **options):
    return {row.what for row in check_linear_map(A, raises=False, **options).failures}


def test_tiny_constant_beside_large_weights():
    assert "zero" in failed(lambda x: jnp.dot(x, 1e6 * W.astype(x.dtype)) + 1e-200, in_shape=(3,))


def test_nonlinear_function():
    assert failed(jnp.tanh, in_shape=(3,)) >= {"additivity", "homogeneity"}


def test_error_names_the_property():
    with pytest.raises(VerificationError, match="additivity"):
        check_linear_map(jnp.square, in_shape=(3,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wrong:
    """A dense map with one mistake."""

    weight: jax.Array
    mistake: str = dataclasses.field(metadata={"static": True}, default="")
    in_shape = (3,)
    out_shape = (3,)

    def __call__(self, x):
        return jnp.matmul(x, self.weight)

    apply = __call__

    @property
    def T(self):  # noqa: N802
        weight = self.weight if self.mistake == "transpose" else self.weight.T
        return Wrong(weight * (1 + 1e-7) if self.mistake == "scale" else weight, self.mistake)

    def params_vjp(self, x, ybar):
        x, ybar = (a if self.mistake == "sum" else a.reshape(-1, 3) for a in (x, ybar))
        bar = jnp.einsum("i,j->ij", x[0], ybar[0]) if self.mistake == "sum" else jnp.einsum("bi,bj->ij", x, ybar)
        return Wrong(bar, self.mistake)


@pytest.mark.parametrize(
    ("mistake", "properties"),
    [("", set()), ("transpose", {"transpose", "adjoint"}), ("scale", {"transpose", "double"}), ("sum", {"parameters"})],
)
def test_mistakes_of_a_map_known_by_its_attributes(mistake, properties):
    found = failed(Wrong(W[:, :3].astype("float64"), mistake))
    assert (found >= properties) if mistake else not found


class Operator:
    """What a lineax operator offers."""

    def __init__(self, weight, transposed=None):
        self.weight, self.transposed = weight, transposed

    def mv(self, x):
        return jnp.dot(self.weight.astype(x.dtype), x)

    def in_structure(self):
        return jax.ShapeDtypeStruct(self.weight.shape[1:], "float32")

    def out_structure(self):
        return jax.ShapeDtypeStruct(self.weight.shape[:1], "float32")

    def transpose(self):
        return Operator(self.weight.T)

    def as_matrix(self):
        return self.weight


def test_operator_known_by_mv():
    report = check_linear_map(Operator(W))
    assert {"transpose", "adjoint", "double"} <= {row.what for row in report.rows}
    assert any("batch axes" in note for note in report.notes)


BAD = {
    "an array": (lambda: check_linear_map(W), TypeError, ["check_linear_map", "a LinearMap, a callable"]),
    "a function without a shape": (lambda: check_linear_map(jnp.sin), ValueError, ["in_shape="]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    call, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert all(text in str(caught.value) for text in texts), caught.value
