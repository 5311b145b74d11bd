"""The residual Transformer feed-forward sublayer over arbitrary linear maps, with checked derivative rules.

    y = x + A2 σ(A1 x + b1) + b2

`ffn_residual` and its siblings are pure functions; `Dense`, `TimeDistributed`, `BlockDiagonal`, `linear_map` and
`linearize` make the maps; `gelu` and its siblings are the activations; `layer_norm` and `rms_norm` normalise;
`attention` and `encoder_block` make whole Transformer blocks.
"""

from ffn_jax import graph as graph
from ffn_jax import sharding as sharding
from ffn_jax._rule import FFNTape as FFNTape
from ffn_jax.activations import Activation as Activation
from ffn_jax.activations import activation as activation
from ffn_jax.activations import gated as gated
from ffn_jax.activations import geglu as geglu
from ffn_jax.activations import gelu as gelu
from ffn_jax.activations import gelu_exact as gelu_exact
from ffn_jax.activations import quick_gelu as quick_gelu
from ffn_jax.activations import relu as relu
from ffn_jax.activations import relu_squared as relu_squared
from ffn_jax.activations import silu as silu
from ffn_jax.activations import swiglu as swiglu
from ffn_jax.attention import Attention as Attention
from ffn_jax.attention import attention as attention
from ffn_jax.dropout import Dropout as Dropout
from ffn_jax.encoder import EncoderBlock as EncoderBlock
from ffn_jax.encoder import FeedForward as FeedForward
from ffn_jax.encoder import encoder_block as encoder_block
from ffn_jax.ffn import ffn as ffn
from ffn_jax.ffn import ffn_reference as ffn_reference
from ffn_jax.ffn import ffn_residual as ffn_residual
from ffn_jax.ffn import ffn_residual_reference as ffn_residual_reference
from ffn_jax.ffn import ffn_residual_tape as ffn_residual_tape
from ffn_jax.maps import BlockDiagonal as BlockDiagonal
from ffn_jax.maps import Dense as Dense
from ffn_jax.maps import LinearMap as LinearMap
from ffn_jax.maps import TimeDistributed as TimeDistributed
from ffn_jax.maps import linear_map as linear_map
from ffn_jax.maps import linearize as linearize
from ffn_jax.norms import LayerNorm as LayerNorm
from ffn_jax.norms import RMSNorm as RMSNorm
from ffn_jax.norms import layer_norm as layer_norm
from ffn_jax.norms import layer_norm_reference as layer_norm_reference
from ffn_jax.norms import rms_norm as rms_norm
from ffn_jax.norms import rms_norm_reference as rms_norm_reference

__version__ = "0.1.0"
