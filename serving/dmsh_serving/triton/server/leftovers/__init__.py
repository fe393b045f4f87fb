"""What killed servers leave: shared memory, folders, processes."""
