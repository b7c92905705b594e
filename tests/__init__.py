"""One file of tests for each file of the source, or for what a user does."""
