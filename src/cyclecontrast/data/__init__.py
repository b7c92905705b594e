"""Floor 1, pixels: from video files to batches of augmented views."""
