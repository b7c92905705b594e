"""Training loop, set-up, checkpoints, monitoring."""
