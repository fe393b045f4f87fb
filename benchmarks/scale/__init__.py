"""What scale costs: ClickHouse beside the kernels, encoding with workers, a billion codes on one machine."""
