"""Fine-tuning an integer network in its own arithmetic."""
