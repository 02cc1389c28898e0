"""Small facts with no opinion: files, images, metrics, seeds. Imports errors alone, never torch."""
