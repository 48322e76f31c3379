"""Where work runs: in this process, on torchrun ranks, on Ray actors."""
