"""Commands that measure: each prints a table that the documentation quotes."""
