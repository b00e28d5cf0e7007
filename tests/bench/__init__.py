"""Measurements. `python3 -m tests.bench [NAME...]` runs them; each module here is one, with a function
`measure()` that prints its table and returns the lines that say which limit was missed."""
