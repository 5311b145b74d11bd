"""Every layout on 8 devices against one, in float64; what it communicates; what it refuses. `test_sharding` runs it.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/eight_devices.py

The reference is the sublayer written out in plain jnp, differentiated by JAX on one device. Each layout comes with each
other choice at least once; FFN_JAX_ALL_SHARDINGS=1 runs the whole product.
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ffn_jax as fj

D_MODEL, D_FF, BATCH, SEQ = 8, 16, 8, 8
F = fj.sharding
MESHES = {
    "2x4": ((2, 4), ("data", "model")),
    "8x1": ((8, 1), ("data", "model")),
    "2x2x2": ((2, 2, 2), ("data", "fsdp", "model")),
}


def _sigmoid(z):
    return 1 / (1 + jnp.exp(-z))


ACTIVATIONS = {
    "gelu": (fj.gelu, lambda z: 0.5 * z * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))),
    "gelu_exact": (fj.gelu_exact, lambda z: z * norm.cdf(z)),
    "swiglu": (fj.swiglu, lambda z: z[..., 0, :] * _sigmoid(z[..., 0, :]) * z[..., 1, :]),
}

# (layout name, mesh names); a layout is the pair of maps and the data axes.
LAYOUTS = {
    "data": lambda A1, A2: (A1, A2, ("data",)),
    "tensor": lambda A1, A2: (F.column_parallel(A1, "model"), F.row_parallel(A2, "model"), None),
    "sequence": lambda A1, A2: (
        F.column_parallel(A1, "model", sequence_parallel=True),
        F.row_parallel(A2, "model", sequence_parallel=True),
        None,
    ),
    "fully_sharded": lambda A1, A2: (F.fully_sharded(A1, "data"), F.fully_sharded(A2, "data"), ("data",)),
    "data_tensor": lambda A1, A2: (F.column_parallel(A1, "model"), F.row_parallel(A2, "model"), ("data",)),
    "data_sequence": lambda A1, A2: (
        F.column_parallel(A1, "model", sequence_parallel=True),
        F.row_parallel(A2, "model", sequence_parallel=True),
        ("data",),
    ),
    "fully_sharded_tensor": lambda A1, A2: (
        F.column_parallel(F.fully_sharded(A1, "data"), "model"),
        F.row_parallel(F.fully_sharded(A2, "data"), "model"),
        ("data",),
    ),
    "fully_sharded_sequence": lambda A1, A2: (
        F.column_parallel(F.fully_sharded(A1, "data"), "model", sequence_parallel=True),
        F.row_parallel(F.fully_sharded(A2, "data"), "model", sequence_parallel=True),
        ("data",),
    ),
    "three_axes": lambda A1, A2: (
        F.column_parallel(F.fully_sharded(A1, "fsdp"), "model", sequence_parallel=True),
        F.row_parallel(F.fully_sharded(A2, "fsdp"), "model", sequence_parallel=True),
        ("data", "fsdp"),
    ),
    "wide": lambda A1, A2: (
        F.column_parallel(A1, ("data", "model")),
        F.row_parallel(A2, ("data", "model")),
        None,
    ),
}
SAVES = [("hidden_pre",), (), ("hidden_pre", "hidden_act")]
CHUNKS = [None, 3]


BIASES = ["feature", "position", "none"]
NORMS = [None, "pre", "post"]
MODES = ["vma", "no_vma", "auto", "explicit"]


def cases():
    """(mode, mesh, layout, save, chunk_size, activation, bias, norm)."""
    whole = bool(os.environ.get("FFN_JAX_ALL_SHARDINGS"))
    choices = list(itertools.product(SAVES, CHUNKS, ACTIVATIONS))
    k = 0
    for mode, mesh, layout in itertools.product(MODES, MESHES, LAYOUTS):
        if ("three" in layout) != (mesh == "2x2x2") and layout not in ("data_tensor", "fully_sharded_sequence"):
            continue
        turns = [(SAVES[j % 3], CHUNKS[j % 2], list(ACTIVATIONS)[(j + j // 3) % 3]) for j in range(k, k + 2)]
        for save, chunk, activation in choices if whole else turns[: 2 if mesh == "2x4" else 1]:
            if not (mode == "explicit" and chunk):  # its tokens are cut: an error of its own
                yield mode, mesh, layout, save, chunk, activation, BIASES[k % 3], NORMS[k % 3]
            k += 1


def arguments(activation, bias):
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s) / np.sqrt(s[0]))
    hidden = (2, D_FF) if activation == "swiglu" else (D_FF,)
    lead = {"feature": (), "position": (SEQ,), "none": None}[bias]
    b1, b2 = (None, None) if lead is None else (draw(*lead, *hidden), draw(*lead, D_MODEL))
    # One weight in each layout of Dense.
    return draw(BATCH, SEQ, D_MODEL), draw(D_MODEL, *hidden), b1, draw(D_MODEL, D_FF), b2


def plain_norm(x, scale):
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5) * jnp.broadcast_to(scale, x.shape)


def plain(activation, where, x, W1, b1, W2, b2, scale):
    z = jnp.einsum("bsd,d...f->bs...f", plain_norm(x, scale) if where == "pre" else x, W1)
    z = z if b1 is None else z + jnp.broadcast_to(b1, z.shape)
    u = jnp.einsum("bsf,df->bsd", activation(z), W2)
    y = x + (u if b2 is None else u + jnp.broadcast_to(b2, u.shape))
    return plain_norm(y, scale) if where == "post" else y


def seed(y):
    return jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)


def a_mesh(mode, name):
    shape, names = MESHES[name]
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


@pytest.mark.parametrize(("mode", "mesh", "layout", "save", "chunk", "activation", "bias", "where"), list(cases()))
def test_is_the_sublayer_on_one_device(mode, mesh, layout, save, chunk, activation, bias, where):
    mesh = a_mesh(mode, mesh)
    x, W1, b1, W2, b2 = arguments(activation, bias)
    sigma, plain_sigma = ACTIVATIONS[activation]
    A1, A2, data = LAYOUTS[layout](fj.Dense(W1), fj.Dense(W2, layout="out_in"))
    scale = jnp.linspace(0.5, 2.0, D_MODEL)
    args = (x, A1, b1, A2, b2, scale)
    specs = F.partition_specs(mesh, *args[:5], data=data)

    def f(x, A1, b1, A2, b2, scale):
        options = {} if where is None else {"norm": fj.LayerNorm(scale), "norm_first": where == "pre"}
        return fj.ffn_residual(x, A1, b1, A2, b2, activation=sigma, save=save, chunk_size=chunk, **options)

    if mode in ("vma", "no_vma"):
        f = jax.shard_map(f, mesh=mesh, in_specs=(*specs.args, P()), out_specs=specs.x, check_vma=mode == "vma")
    placed = jax.device_put(args, (*specs.shardings(mesh), jax.NamedSharding(mesh, P())))
    ybar = jax.device_put(seed(x), jax.NamedSharding(mesh, specs.x))

    @jax.jit
    def both(args, ybar):
        y, pull = jax.vjp(f, *args)
        return y, pull(ybar)

    got = both(placed, ybar)
    y, pull = jax.vjp(lambda *args: plain(plain_sigma, where, *args), x, W1, b1, W2, b2, scale)
    expected = (y, pull(seed(y)))
    if mode != "auto":  # a cotangent lies where its primal does
        for a, c in zip(jax.tree.leaves(placed), jax.tree.leaves(got[1]), strict=True):
            assert c.sharding.is_equivalent_to(a.sharding, a.ndim), (a.sharding, c.sharding)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(b).max()))
