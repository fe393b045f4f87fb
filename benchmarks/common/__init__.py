"""What several benchmarks share: pages, networks, timing."""
