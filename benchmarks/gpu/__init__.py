"""Plans on this machine's NVIDIA GPU: built, tested, compared with PyTorch bit for bit, and timed."""
