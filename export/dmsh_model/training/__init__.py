"""Training a float DMSH network: options, losses, loop, saved state."""
