"""Export a backbone in the format of another tool."""
