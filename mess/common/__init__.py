"""Small facts with no opinion: files, images, metrics, plugins, progress, seeds, sentences.
No torch.

May import: errors.
"""
