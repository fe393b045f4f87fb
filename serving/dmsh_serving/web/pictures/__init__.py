"""The images behind the keys: an index of their files, and small copies to look at."""
