"""Tracking: a tracker follows a box through sequences or a video; scores, plots and other trackers beside it."""
