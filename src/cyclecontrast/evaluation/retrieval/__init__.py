"""Retrieval: the nearest training frames, clips or videos of each one of the test split."""
