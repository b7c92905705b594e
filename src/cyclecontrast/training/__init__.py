"""Floor 4, the loop: schedule, processes, checkpoints."""
