"""Measuring latencies part by part.

May import: exits, common, export, networks, runtime, signals.
"""
