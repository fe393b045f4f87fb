"""How fast the encoders are, and how many bits each gets wrong."""
