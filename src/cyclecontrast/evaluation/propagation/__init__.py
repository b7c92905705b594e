"""Label propagation: the mask of the first frame follows its objects through a video by the similarity of features."""
