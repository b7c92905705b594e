"""Search an index for the frames most similar to an image or a frame.

Importing this package does not import PyTorch.
"""
