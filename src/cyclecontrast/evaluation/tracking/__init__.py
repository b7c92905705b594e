"""The protocol `tracking`."""
