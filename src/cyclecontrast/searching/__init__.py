"""Search an index of frames for those most similar to an image or a frame. Importing this imports nothing heavy."""
