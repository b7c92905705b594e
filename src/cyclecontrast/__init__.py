"""From a folder of unlabeled videos to an image backbone."""
