"""Floor 6, what people look at: one static HTML page."""
