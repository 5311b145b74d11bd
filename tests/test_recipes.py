"""The README's Flax and Equinox modules compute, and differentiate, what the plain modules do."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ffn_jax as fj

README = (Path(__file__).parent.parent / "README.md").read_text()
(RECIPE,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "nnx.Module" in block)


@pytest.fixture(scope="module")
def recipe():
    with jax.enable_x64(False):  # as users run it
        k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
        names = {"jax": jax, "jnp": jnp, "fj": fj, "k1": k1, "k2": k2, "x": jax.random.normal(k3, (3, 5, 64))}
        exec(RECIPE, names)
        yield names


def plain(module, x):
    """The sublayer as the module's own layers compute it."""
    each = jax.vmap(jax.vmap(lambda token: module.down(jax.nn.gelu(module.up(token)))))
    return x + each(x)


@pytest.mark.parametrize(("name", "grad"), [("FeedForward", nnx.grad), ("EquinoxFeedForward", eqx.filter_grad)])
def test_module_is_the_plain_one(recipe, name, grad):
    x = recipe["x"]
    if name == "FeedForward":
        model = recipe[name](64, 256, rngs=nnx.Rngs(1))
    else:
        model = recipe["model"]
    np.testing.assert_allclose(model(x), plain(model, x), rtol=1e-5, atol=1e-6)
    got, expected = (
        jax.tree.leaves(grad(lambda m, f=f: jnp.sum(jnp.sin(f(m))))(model))
        for f in (lambda m: m(x), lambda m: plain(m, x))
    )
    assert len(got) == len(expected) == 4
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)
