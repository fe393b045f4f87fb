"""The programs behind the figures of docs/: ``python -m benchmarks.rank`` and its neighbours."""
