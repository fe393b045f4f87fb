"""Ten million bits of the integer network, in every way to run it."""
