"""How well codes retrieve: every metric in the one defined order (Hamming distance, database row)."""
