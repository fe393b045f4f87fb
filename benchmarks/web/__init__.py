"""How fast the search page and its API answer, and what it costs the browser to scroll."""
