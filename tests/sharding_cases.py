"""Run as a script in a process with 8 devices: every layout of one group against one device, in float64.

    python sharding_cases.py MODE          MODE: vma, no_vma, auto, explicit

Each case is (mesh, layout, save, chunk_size, activation): all values of each and all pairs of a layout with the others,
not the whole product. Prints one line of JSON: the largest error, relative to the largest entry, of y and of each
cotangent of each case. The reference is the sublayer written out in plain jnp, differentiated by JAX on one device.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.sharding import AxisType

import ffn_jax as fj

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

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


def cases(mode):
    """Pairs of every layout with every other choice; each mesh with every layout it has the axes for."""
    k = 0
    for mesh in MESHES:
        for layout in LAYOUTS:
            if ("three" in layout) != (mesh == "2x2x2") and layout not in ("data_tensor", "fully_sharded_sequence"):
                continue
            for _ in range(3 if mesh == "2x4" else 1):
                chunk = None if mode == "explicit" else CHUNKS[k % 2]
                yield mesh, layout, SAVES[k % 3], chunk, list(ACTIVATIONS)[(k + k // 3) % 3], BIASES[k % len(BIASES)]
                k += 1


BIASES = ["feature", "position", "none"]


def arguments(activation, bias):
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s) / np.sqrt(s[0]))
    hidden = (2, D_FF) if activation == "swiglu" else (D_FF,)
    lead = {"feature": (), "position": (SEQ,), "none": None}[bias]
    b1, b2 = (None, None) if lead is None else (draw(*lead, *hidden), draw(*lead, D_MODEL))
    # One weight in each layout of Dense.
    return draw(BATCH, SEQ, D_MODEL), draw(D_MODEL, *hidden), b1, draw(D_MODEL, D_FF), b2


def plain(activation, x, W1, b1, W2, b2):
    z = jnp.einsum("bsd,d...f->bs...f", x, W1)
    z = z if b1 is None else z + jnp.broadcast_to(b1, z.shape)
    u = jnp.einsum("bsf,df->bsd", activation(z), W2)
    return x + (u if b2 is None else u + jnp.broadcast_to(b2, u.shape))


def seed(y):
    return jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)


def run(mode, mesh_name, layout, save, chunk, activation, bias):
    shape, names = MESHES[mesh_name]
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    x, W1, b1, W2, b2 = arguments(activation, bias)
    sigma, plain_sigma = ACTIVATIONS[activation]
    A1, A2, data = LAYOUTS[layout](fj.Dense(W1), fj.Dense(W2, layout="out_in"))
    args = (x, A1, b1, A2, b2)
    specs = F.partition_specs(mesh, *args, data=data)
    f = lambda *args: fj.ffn_residual(*args, activation=sigma, save=save, chunk_size=chunk)
    if mode in ("vma", "no_vma"):
        f = jax.shard_map(f, mesh=mesh, in_specs=specs.args, out_specs=specs.x, check_vma=mode == "vma")
    placed = jax.device_put(args, specs.shardings(mesh))
    ybar = jax.device_put(seed(x), jax.NamedSharding(mesh, specs.x))

    @jax.jit
    def both(args, ybar):
        y, pull = jax.vjp(f, *args)
        return y, pull(ybar)

    got = both(placed, ybar)
    y, pull = jax.vjp(lambda *a: plain(plain_sigma, *a), x, W1, b1, W2, b2)
    expected = (y, pull(seed(y)))
    if mode != "auto":  # a cotangent lies where its primal does
        for a, c in zip(jax.tree.leaves(placed), jax.tree.leaves(got[1]), strict=True):
            assert c.sharding.is_equivalent_to(a.sharding, a.ndim), (a.sharding, c.sharding)
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    return [float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(got, expected, strict=True)]


if __name__ == "__main__":
    worst = {}
    for case in cases(sys.argv[1]):
        errors = run(sys.argv[1], *case)
        worst[str(case)] = errors
        if "-v" in sys.argv:
            print(case, f"{max(errors):.1e}", flush=True)
    print(json.dumps(worst))
