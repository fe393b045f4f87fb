"""A page to search a served gallery with one's eyes, and the HTTP API under it; needs the extra ``web``."""
