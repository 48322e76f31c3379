"""The algorithms: one paper, one file; import the module you need, nothing is imported here."""
