"""A float checkpoint to an integer one: calibration, scales, rounding, and what it cost."""
