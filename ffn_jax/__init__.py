"""The residual Transformer feed-forward sublayer over arbitrary linear maps."""
