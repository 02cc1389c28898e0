"""Signals that compare two exits, filled on demand.

May import: errors, cache, common.
"""
