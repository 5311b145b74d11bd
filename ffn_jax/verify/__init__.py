"""Verification: derivative rules and linear maps checked with derived tolerances."""

from ffn_jax.verify._check_linear_map import check_linear_map as check_linear_map
from ffn_jax.verify._check_vjp import check_vjp as check_vjp
from ffn_jax.verify._report import LinearMapReport as LinearMapReport
from ffn_jax.verify._report import VerificationError as VerificationError
from ffn_jax.verify._report import VJPReport as VJPReport
from ffn_jax.verify._strip import has_custom_rules as has_custom_rules
from ffn_jax.verify._strip import strip_custom_rules as strip_custom_rules
