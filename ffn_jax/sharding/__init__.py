"""The sublayer on many devices, by JAX's own meshes: sharded maps, layouts, and what they communicate.

A sharded map is a `LinearMap`, so that the layout is a choice of A1 and A2 and `ffn_residual` stays one function:

    tensor parallel      A1 = column_parallel(A1, "model")       A2 = row_parallel(A2, "model")
    sequence parallel    the same with sequence_parallel=True
    fully sharded        A1 = fully_sharded(A1, "data")          A2 = fully_sharded(A2, "data")
    data parallel        plain maps

They run inside `jax.shard_map` and under `jit` with `NamedSharding`, automatic or explicit. With check_vma=True, JAX's
default, `shard_map` sends the least there is; with False it sums some cotangents over axes along which they are equal.
`communication` counts what a compiled program sends, `plan` says it beforehand.
"""

from ffn_jax.sharding._communication import Collective as Collective
from ffn_jax.sharding._communication import Communication as Communication
from ffn_jax.sharding._communication import communication as communication
from ffn_jax.sharding._fully_sharded import fully_sharded as fully_sharded
from ffn_jax.sharding._parallel import column_parallel as column_parallel
from ffn_jax.sharding._parallel import row_parallel as row_parallel
from ffn_jax.sharding._plan import Plan as Plan
from ffn_jax.sharding._plan import plan as plan
from ffn_jax.sharding._specs import Specs as Specs
from ffn_jax.sharding._specs import partition_specs as partition_specs
