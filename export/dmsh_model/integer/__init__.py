"""The integer network: its layers, its checks, its reference arithmetic, its checkpoint."""
