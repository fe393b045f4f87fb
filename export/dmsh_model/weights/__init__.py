"""Trained weights of a backbone: where they are found, whose names they use, and what images they expect."""
