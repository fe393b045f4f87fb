"""What a search by a file waits for."""
