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


# ------------------------------------------------------------------------------- what is sent


def program(mode, mesh, layout, layers=1):
    """A scan over sublayers with every cotangent, laid out; its arguments; and the plan's arguments."""
    mesh, (x, W1, b1, W2, b2) = a_mesh(mode, mesh), arguments("gelu", "feature")
    A1, A2, data = LAYOUTS[layout](fj.Dense(W1), fj.Dense(W2, layout="out_in"))
    specs = F.partition_specs(mesh, x, A1, b1, A2, b2, data=data)
    shape = jax.tree.map(lambda spec: P(None, *spec), specs.args[1:])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * layers), (A1, b1, A2, b2))

    def stack(x, params):
        return jax.lax.scan(lambda x, layer: (fj.ffn_residual(x, *layer), None), x, params)[0]

    run = jax.shard_map(stack, mesh=mesh, in_specs=(specs.x, shape), out_specs=specs.x, check_vma=mode == "vma")

    def both(x, params, ybar):
        y, pull = jax.vjp(run, x, params)
        return y, pull(ybar)

    named = lambda tree: jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), tree)
    args = jax.device_put((x, stacked, seed(x)), (named(specs.x), named(shape), named(specs.x)))
    return run, both, args, ((mesh, x, A1, b1, A2, b2), data)


def by_kind(communication):
    """(kind, devices) -> bytes of all such collectives of one run."""
    total = {}
    for c in communication.collectives:
        total[c.kind, c.devices] = total.get((c.kind, c.devices), 0) + c.times * c.bytes
    return total


PLANNED = [
    *itertools.product(["2x4"], [name for name in LAYOUTS if name != "three_axes"]),
    ("8x1", "data_tensor"),
    ("2x2x2", "three_axes"),
]


@pytest.mark.parametrize(("mesh", "layout"), PLANNED)
def test_plan_is_what_the_compiled_program_sends_and_keeps(mesh, layout):
    layers = 3
    _, both, args, (plan_args, data) = program("vma", mesh, layout, layers)
    plan = F.plan(*plan_args, data=data, layers=layers)
    assert by_kind(F.communication(both, *args)) == by_kind(plan.communication)
    memory = jax.jit(both).lower(*args).compile().memory_analysis()
    ends = args[0].addressable_shards[0].data.nbytes
    assert memory.argument_size_in_bytes == plan.bytes_parameters + 2 * ends


def test_plan_counts_what_is_saved_and_computed():
    def of(save, layout="data_tensor"):
        _, _, _, (args, data) = program("vma", "2x4", layout)
        return F.plan(*args, data=data, save=save)

    tokens = BATCH * SEQ // 2
    plan = of(("hidden_pre",))
    assert plan.devices == 8
    assert plan.bytes_saved == 8 * tokens * (D_MODEL + D_FF // 4)
    assert of(()).bytes_saved == 8 * tokens * D_MODEL
    assert of(("hidden_pre", "hidden_act")).bytes_saved == 8 * tokens * (D_MODEL + 2 * D_FF // 4)
    products = 2 * 2 * tokens * D_MODEL * D_FF // 4
    assert products <= plan.flops_forward <= 1.5 * products
    assert 2 * products <= plan.flops_backward <= 3 * products
    assert of(()).flops_backward > plan.flops_backward  # z once more
    assert "8 devices, data 2, model 4" in str(plan)


def test_megatron_sends_one_all_reduce_forward_and_one_backward():
    run, both, args, _ = program("vma", "2x4", "tensor")
    forward, whole = F.communication(run, *args[:2]), F.communication(both, *args)
    y = 8 * BATCH * SEQ * D_MODEL
    assert by_kind(forward) == {("all-reduce", 4): y}
    assert forward.count() == 1
    assert by_kind(whole) == {("all-reduce", 4): 2 * y}
    assert whole.bytes_sent() == 2 * 2 * 3 * y // 4
    assert "all-reduce" in str(whole)


def test_sequence_parallelism_gathers_and_scatters():
    run, both, args, _ = program("vma", "2x4", "sequence")
    x = 8 * BATCH * SEQ * D_MODEL
    forward, whole = F.communication(run, *args[:2]), F.communication(both, *args)
    assert by_kind(forward) == {("all-gather", 4): x, ("reduce-scatter", 4): x}
    biases = {("all-reduce", 4): 8 * D_MODEL}
    assert by_kind(whole) == {("all-gather", 4): 2 * x, ("reduce-scatter", 4): 2 * x, **biases}


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    _, both, args, _ = program("vma", "2x4", "tensor", layers=5)
    assert F.communication(both, *args).count("all-reduce") == 10


def test_unread_groups_are_an_error():
    line = "ENTRY %main () -> f32[4] {\n  %a = f32[4]{0} all-reduce(%x), replica_groups=new_form, to_apply=%add\n}"
    with pytest.raises(ValueError, match="cannot read the groups"):
        F._communication.from_hlo(line, 8)


# ------------------------------------------------------------------------------- bad input

X, W1, B1, W2, B2 = arguments("gelu", "feature")
DENSE1, DENSE2 = fj.Dense(W1), fj.Dense(W2, layout="out_in")
TENSOR = F.column_parallel(DENSE1, "model"), F.row_parallel(DENSE2, "model")
SEQUENCE = LAYOUTS["sequence"](DENSE1, DENSE2)[:2]


def specs_of(A1=DENSE1, A2=DENSE2, x=X, mesh=("data", "model"), **options):
    return F.partition_specs(jax.sharding.AbstractMesh((2, 4), mesh), x, A1, B1, A2, B2, **options)


def mapped(A1, A2, x_spec=None, A_specs=None):
    """`ffn_residual` in shard_map with specs by hand."""
    x_spec = x_spec or P()
    A_specs = A_specs or [jax.tree.map(lambda _: P(), A) for A in (A1, A2)]
    mesh = a_mesh("vma", "2x4")
    f = lambda x, A1, A2: fj.ffn_residual(x, A1, None, A2, None)
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(x_spec, *A_specs), out_specs=x_spec))(X, A1, A2)


def narrow(d_ff):
    return F.column_parallel(fj.Dense(W1[:, :d_ff]), "model"), F.row_parallel(fj.Dense(W2.T[:d_ff]), "model")


def on(device, array):
    return jax.device_put(array, jax.devices()[device])


BAD = {
    "no such axis": (lambda: specs_of(*TENSOR, mesh=("data", "tp")), ValueError, ["'data', 'tp'", "'model'"]),
    "no such data axis": (lambda: specs_of(data="batch"), ValueError, ["('data', 'model')", "'batch'"]),
    "d_ff does not divide": (lambda: specs_of(*narrow(6)), ValueError, ["divide by the 4 devices", "'model'", "got 6"]),
    "batch does not divide": (
        lambda: specs_of(x=X[:3], data="data"),
        ValueError,
        ["x (3, 8, 8)", "2 devices"],
    ),
    "axis used twice": (lambda: specs_of(*TENSOR, data="model"), ValueError, ["once", "'model'"]),
    "cut twice": (lambda: F.column_parallel(TENSOR[0], "data"), ValueError, ["not cut yet", "ColumnParallel"]),
    "sharded twice": (
        lambda: F.fully_sharded(F.fully_sharded(DENSE1, "data"), "model"),
        ValueError,
        ["not sharded yet", "FullySharded"],
    ),
    "cut and sharded over one axis": (
        lambda: F.column_parallel(F.fully_sharded(DENSE1, "model"), "model"),
        ValueError,
        ["another axis", "'model'"],
    ),
    "column without row": (
        lambda: specs_of(TENSOR[0], DENSE2),
        ValueError,
        ["row_parallel", "Dense"],
    ),
    "row before column": (lambda: specs_of(*TENSOR[::-1]), ValueError, ["A1 = column_parallel", "A1 = RowParallel"]),
    "cut differently": (lambda: specs_of(TENSOR[0], SEQUENCE[1]), ValueError, ["cut alike", "sequence parallel"]),
    "no map": (lambda: F.column_parallel(W1, "model"), TypeError, ["column_parallel", "LinearMap"]),
    "no name": (lambda: F.row_parallel(DENSE2, 1), TypeError, ["row_parallel", "name of a mesh axis", "1"]),
    "how to cut is not known": (
        lambda: specs_of(F.column_parallel(fj.linear_map(lambda _, x: x, D_MODEL), "model"), TENSOR[1]),
        TypeError,
        ["by its outputs", "by hand"],
    ),
    "whole maps in place of parts": (lambda: mapped(*TENSOR), ValueError, ["cut over 'model'", "in_specs"]),
    "tokens cut over the model axis": (
        lambda: mapped(*TENSOR, P(None, "model"), [specs_of(*TENSOR).A1, specs_of(*TENSOR).A2]),
        ValueError,
        ["same along 'model'", "sequence_parallel=True"],
    ),
    "tokens not cut": (
        lambda: mapped(*SEQUENCE, P(), [specs_of(*SEQUENCE).A1, specs_of(*SEQUENCE).A2]),
        ValueError,
        ["cut over 'model'", "sequence_parallel=True"],
    ),
    "arguments on different devices": (
        lambda: fj.ffn_residual(on(0, X), on(1, DENSE1), None, DENSE2, None),
        ValueError,
        ["x on", "A1 on", "device_put"],
    ),
    "chunks of cut tokens": (
        lambda: fj.ffn_residual(
            jax.device_put(X, jax.NamedSharding(a_mesh("explicit", "2x4"), P("data"))),
            *jax.device_put((DENSE1, None, DENSE2, None), jax.NamedSharding(a_mesh("explicit", "2x4"), P())),
            chunk_size=4,
        ),
        ValueError,
        ["chunk_size=4", "explicit", "shard_map"],
    ),
    "no layers": (
        lambda: F.plan(jax.sharding.AbstractMesh((2,), ("data",)), X, DENSE1, B1, DENSE2, B2, layers=0),
        ValueError,
        ["layers", "positive", "0"],
    ),
    "nothing to call": (lambda: F.communication(3), TypeError, ["communication", "callable", "3"]),
    "no such kind": (lambda: F.Communication(()).count("broadcast"), ValueError, ["all-reduce", "'broadcast'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    f, error, said = BAD[case]
    with pytest.raises(error) as caught:
        f()
    message = str(caught.value)
    assert "expected" in message or "cannot tell" in message
    assert all(text in message for text in said), message


def test_dropout_in_a_cut_sublayer_is_refused():
    key = jax.random.key(0)
    f = lambda x, A1, A2: fj.ffn_residual(x, A1, None, A2, None, dropout=fj.Dropout(0.5, key))
    specs = specs_of(*TENSOR)
    run = jax.shard_map(f, mesh=a_mesh("vma", "2x4"), in_specs=(P(), specs.A1, specs.A2), out_specs=P())
    with pytest.raises(ValueError, match="no dropout in a sublayer that is cut over devices"):
        run(X, *TENSOR)
