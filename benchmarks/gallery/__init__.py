"""What one change of a gallery costs."""
