"""The store of predictions, the only place that knows Parquet: files named by their content.

May import: errors, common.
"""
