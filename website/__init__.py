"""The documentation site: its pages gathered from docs/ and the code, then built by Zensical."""
