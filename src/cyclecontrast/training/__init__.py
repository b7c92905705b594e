"""The training loop, setup, checkpoints, and health monitoring."""
