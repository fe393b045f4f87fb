"""The main job on real images from end to end: ``dmsh-export demo``."""
