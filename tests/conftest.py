"""Strict numerics for every test: 64-bit on, no silent dtype or rank promotion."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that are run, not imported: doctest would import them.
collect_ignore = ["data", "eight_devices.py", "process_worker.py"]
