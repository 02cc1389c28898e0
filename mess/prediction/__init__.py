"""One pass of the network over a split: what every exit answers, counted.

May import: exits, common, networks, signals.
"""
