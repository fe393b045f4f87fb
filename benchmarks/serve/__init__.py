"""What serving costs beside the same work in process."""
