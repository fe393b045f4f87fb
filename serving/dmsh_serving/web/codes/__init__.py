"""The gallery's codes in this process: looked up, ordered, filtered and examined."""
