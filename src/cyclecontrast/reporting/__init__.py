"""Floor 6, what people look at: one static HTML page. Importing this imports nothing heavy."""
