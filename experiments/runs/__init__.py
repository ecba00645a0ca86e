"""The run directory and its life: memory, progress, checkpoints, interruption."""
