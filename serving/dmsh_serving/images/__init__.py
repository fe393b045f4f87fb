"""Image files to arrays: one conversion for training, galleries, parity and serving."""
