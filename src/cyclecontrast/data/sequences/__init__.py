"""Layouts of tracking data."""
