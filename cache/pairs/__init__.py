"""Signals that compare two exits, filled on demand."""
