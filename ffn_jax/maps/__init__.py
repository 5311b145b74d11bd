"""Linear maps: what A1 and A2 may be."""

from ffn_jax.maps._base import LinearMap as LinearMap
from ffn_jax.maps._block_diagonal import BlockDiagonal as BlockDiagonal
from ffn_jax.maps._dense import Dense as Dense
from ffn_jax.maps._function import linear_map as linear_map
from ffn_jax.maps._function import linearize as linearize
from ffn_jax.maps._fused import FusedDense as FusedDense
from ffn_jax.maps._time_distributed import TimeDistributed as TimeDistributed
