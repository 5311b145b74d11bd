"""Is a hand-written derivative rule right?  Proofs of it."""

from ffn_jax.verify._strip import strip_custom_rules as strip_custom_rules
from ffn_jax.verify.symbolic import Certificate as Certificate
from ffn_jax.verify.symbolic import Refutation as Refutation
from ffn_jax.verify.symbolic import Undecided as Undecided
from ffn_jax.verify.symbolic import opaque_linear_map as opaque_linear_map
from ffn_jax.verify.symbolic import prove_vjp as prove_vjp
