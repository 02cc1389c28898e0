"""Small facts with no opinion: compiled loops, files, images, metrics, plugins, progress, seeds,
sentences. No torch.

May import: errors.
"""
