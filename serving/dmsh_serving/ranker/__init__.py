"""Codes to nearest images: what is asked, how asks are answered together, the gallery that is followed."""
