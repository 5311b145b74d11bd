"""Is a hand-written derivative rule right? Checks with derived tolerances, and proofs for all inputs and sizes."""

from ffn_jax.verify._check_linear_map import check_linear_map as check_linear_map
from ffn_jax.verify._check_vjp import check_vjp as check_vjp
from ffn_jax.verify._report import LinearMapReport as LinearMapReport
from ffn_jax.verify._report import VerificationError as VerificationError
from ffn_jax.verify._report import VJPReport as VJPReport
from ffn_jax.verify._strip import has_custom_rules as has_custom_rules
from ffn_jax.verify._strip import strip_custom_rules as strip_custom_rules
from ffn_jax.verify.symbolic import Certificate as Certificate
from ffn_jax.verify.symbolic import Refutation as Refutation
from ffn_jax.verify.symbolic import Undecided as Undecided
from ffn_jax.verify.symbolic import opaque_linear_map as opaque_linear_map
from ffn_jax.verify.symbolic import prove_vjp as prove_vjp
