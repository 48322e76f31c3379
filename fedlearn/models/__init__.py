"""Small reference models, one file each; none has running statistics (no BatchNorm)."""
