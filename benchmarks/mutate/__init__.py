"""How many small faults the tests find: mutants of the code, each run against the tests of its package."""
