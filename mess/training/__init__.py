"""The training loop: stages, losses, checkpoints, best epochs, logs.

May import: errors, config, exits, common, compute, data, networks, prediction.
"""
