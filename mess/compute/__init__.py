"""Where work runs: processes, devices, memory."""
