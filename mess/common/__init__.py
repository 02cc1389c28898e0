"""Small facts with no opinion: files, images, metrics, plugins, progress, seeds. No torch.

May import: errors.
"""
