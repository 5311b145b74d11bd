"""One of several processes: trains a small sharded stack for some steps, saving a checkpoint after each.

    python process_worker.py COORDINATOR PROCESSES PROCESS FOLDER STEPS [die after step]

Every process brings 8 / PROCESSES simulated devices to the mesh (data 2, model 4), so that the program is the same for
any number of processes. Training goes on from the last checkpoint in FOLDER. Process 0 prints a line of JSON: the loss
of each step, and of the parameters at the end sums that tell them apart.
"""

import json
import os
import signal
import sys
from pathlib import Path

coordinator, processes, process, folder, steps, *die = sys.argv[1:]
processes, process, steps = int(processes), int(process), int(steps)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // processes}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

jax.config.update("jax_enable_x64", True)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=60, heartbeat_timeout_seconds=10)

import orbax.checkpoint as ocp

import ffn_jax as fj

LAYERS, BATCH, SEQ, D, F = 3, 4, 8, 8, 16
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-2])


def maps(W1, b1, W2, b2):
    A1 = fj.sharding.column_parallel(fj.sharding.fully_sharded(fj.Dense(W1), "data"), "model", sequence_parallel=True)
    A2 = fj.sharding.row_parallel(fj.sharding.fully_sharded(fj.Dense(W2), "data"), "model", sequence_parallel=True)
    return A1, b1, A2, b2


one = jax.ShapeDtypeStruct
shapes = [(D, F), (F,), (F, D), (D,)]
specs = fj.sharding.partition_specs(
    mesh, one((BATCH, SEQ, D), "float64"), *maps(*(one(shape, "float64") for shape in shapes)), data="data"
)
layer_specs = jax.tree.map(lambda spec: P(None, *spec), specs.args[1:])


def placed(value, spec):
    """The whole value is known everywhere; each device takes its part."""
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index: value[index])


def stack(x, params):
    return jax.lax.scan(lambda x, layer: (fj.ffn_residual(x, *layer, save=()), None), x, params)[0]


run = jax.shard_map(stack, mesh=mesh, in_specs=(specs.x, layer_specs), out_specs=specs.x)


@jax.jit
def step(params, x, target):
    loss, bars = jax.value_and_grad(lambda params: jnp.mean((run(x, params) - target) ** 2))(params)
    return jax.tree.map(lambda p, bar: p - 0.02 * bar, params, bars), loss


weights = [draw(k, LAYERS, *(shape if len(shape) == 2 else (1, *shape))) for k, shape in enumerate(shapes)]
start = maps(*(w.reshape(LAYERS, *shape) for w, shape in zip(weights, shapes, strict=True)))
params = jax.tree.map(placed, start, layer_specs)
x, target = (placed(draw(seed, BATCH, SEQ, D), specs.x) for seed in (10, 11))

losses = []
with ocp.CheckpointManager(
    Path(folder), options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
) as saved:
    first = 0
    if saved.latest_step() is not None:
        first = saved.latest_step()
        params = saved.restore(first, args=ocp.args.StandardRestore(params))
    for k in range(first, steps):
        params, loss = step(params, x, target)
        losses.append(float(loss))
        saved.save(k + 1, args=ocp.args.StandardSave(params))
        print(f"step {k + 1}", file=sys.stderr, flush=True)
        if die and k + 1 == int(die[0]):
            os.kill(os.getpid(), signal.SIGKILL)


@jax.jit
def sums(params):
    return [jnp.sum(jnp.sin(jnp.arange(p.size).reshape(p.shape)) * p) for p in jax.tree.leaves(params)]


result = [float(s) for s in sums(params)]
if process == 0:
    print(json.dumps({"first": first, "losses": losses, "sums": result}), flush=True)
