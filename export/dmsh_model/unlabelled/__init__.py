"""Codes without labels: the principal components of pooled features, rotated to the nearest bits (PCA and ITQ)."""
