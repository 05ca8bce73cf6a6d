"""Infrastructure: devices, processes, checkpoints, run folders, and helpers of the programs."""
