from ffn_jax.sharding._fully_sharded import fully_sharded as fully_sharded
from ffn_jax.sharding._parallel import column_parallel as column_parallel
from ffn_jax.sharding._parallel import row_parallel as row_parallel
from ffn_jax.sharding._specs import Specs as Specs
from ffn_jax.sharding._specs import partition_specs as partition_specs
