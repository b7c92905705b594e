"""Which images have masks, and what the numbers in a mask mean."""
