"""How fast exact Hamming search is here."""
