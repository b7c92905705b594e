"""A backbone → what other tools load, one file per tool. Importing this imports no PyTorch."""
