"""What `python -m ffn_jax` and the notebooks run on: the real MiniLM encoder's weights, its tokens, and the job."""
