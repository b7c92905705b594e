"""Write runs as one HTML page."""
