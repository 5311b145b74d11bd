"""Proof-carrying graphs: named values, nodes with a forward, a jvp and a vjp each, and one theorem by composition.

A graph starts from a context of named inputs. Each node reads any earlier values and adds one, so values may fan out:

    evaluate   v_k = f_k(θ_k, v_reads(k))                 inputs and all v_k: the tape
    jvp        v̇_k = Σ_i ∂_i f_k v̇_i + ∂_θ f_k θ̇_k
    backprop   v̄_i = seed_i + Σ_{k reads i} (∂_i f_k)ᵀ v̄_k,     θ̄_k = (∂_θ f_k)ᵀ v̄_k,     last node first

with a seed on every input and on every tape entry. If the rule of every node is the adjoint of its derivative, so is
backprop of the graph's, by induction over the nodes; `Graph.certify` proves the nodes and states that theorem.

Source: TorchLean, `Graph` with `nil`, `snoc`, `append` and `weakenContext`, and `backpropVec_eq_adjoint_fderiv`.
"""

from ffn_jax.graph._certificate import GraphCertificate as GraphCertificate
from ffn_jax.graph._certificate import NodeVerdict as NodeVerdict
from ffn_jax.graph._graph import Cotangents as Cotangents
from ffn_jax.graph._graph import Entry as Entry
from ffn_jax.graph._graph import Graph as Graph
from ffn_jax.graph._nodes import Node as Node
from ffn_jax.graph._nodes import add as add
from ffn_jax.graph._nodes import affine as affine
from ffn_jax.graph._nodes import elementwise as elementwise
from ffn_jax.graph._nodes import matmul as matmul
from ffn_jax.graph._nodes import mul as mul
from ffn_jax.graph._nodes import node as node
from ffn_jax.graph._nodes import norm as norm
from ffn_jax.graph._nodes import softmax as softmax
from ffn_jax.graph._sublayer import ffn_residual_graph as ffn_residual_graph
