"""Pages about a run, each one self-contained file."""
