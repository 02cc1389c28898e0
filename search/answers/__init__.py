"""What a search tells: the answer, why, and what a limit costs."""
