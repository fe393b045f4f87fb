"""Encoders run side by side: their bits (parity) and their speed (latency)."""
