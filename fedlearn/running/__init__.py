"""A run from its configuration to its history: rounds, signals, checkpoints, what is told and what is kept."""
