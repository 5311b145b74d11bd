"""Whole models on this library: `bert`, the encoder, and `minilm`, its real weights and the sentences around it."""
