"""What a run stands on: devices, processes, folders, checkpoints, what the programs share."""
