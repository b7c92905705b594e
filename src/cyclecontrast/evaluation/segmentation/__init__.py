"""The protocol `segmentation`: a head on a feature map gives every pixel a class (protocols.md §g)."""
