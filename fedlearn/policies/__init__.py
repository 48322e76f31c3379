"""Round-level policies beside the algorithm: who works, how much, with what weight, step and time."""
