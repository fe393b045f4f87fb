"""Load a server and measure it: closed and open loops, until what is measured is stable."""
