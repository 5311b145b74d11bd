"""The algebraic prover behind `ffn_jax.verify.prove_vjp`.

Read in this order: `_specs` (what is compared), `_atoms`, `_polynomials`, `_functions`, `_sums` (the normal
form), `_tensors`, `_primitives`, `_ranges`, `_scan`, `_interpret` (from jaxprs to it), `_cuts`,
`_derivative`, `_equality`, `_normalise` (the two routes), `_evaluate`, `_field`, `_balls`, `_refute` (numbers
against it), `_prove` (the verdict).
"""

from ffn_jax.verify.symbolic._opaque import OpaqueLinearMap as OpaqueLinearMap
from ffn_jax.verify.symbolic._opaque import opaque_linear_map as opaque_linear_map
from ffn_jax.verify.symbolic._prove import prove_vjp as prove_vjp
from ffn_jax.verify.symbolic._verdict import Certificate as Certificate
from ffn_jax.verify.symbolic._verdict import Refutation as Refutation
from ffn_jax.verify.symbolic._verdict import Undecided as Undecided
from ffn_jax.verify.symbolic._verdict import Verdict as Verdict
