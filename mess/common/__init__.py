"""Small facts with no opinion: compiled loops, files, images, metrics, plugins, progress, seeds. No
torch.

May import: errors.
"""
