"""torch.distributed ranks: under torchrun, or started by the coordinator itself."""
