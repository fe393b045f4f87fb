"""Whether ``dmsh-serve load`` measures what NVIDIA's perf_analyzer does."""
