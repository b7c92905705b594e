"""Floor 6, what people ask: the frames most like this one. Importing this imports nothing heavy."""
