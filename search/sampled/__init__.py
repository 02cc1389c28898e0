"""Searches that sample, unproven; the only place that knows Optuna."""
