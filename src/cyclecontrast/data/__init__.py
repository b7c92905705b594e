"""Data: from video files to frame stores and batches of augmented views, and labeled datasets."""
