"""Find how an encoder is served best on this machine: measured alone first, then live through Triton."""
