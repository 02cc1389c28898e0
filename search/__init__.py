"""Search on stored statistics: no network runs, no torch is loaded.

May import: nothing.
"""
