"""The integer networks on other CPUs, emulated."""
