"""Where work runs: processes, devices, memory.

May import: errors.
"""
