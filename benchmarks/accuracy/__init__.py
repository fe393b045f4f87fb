"""What integers cost in retrieval."""
