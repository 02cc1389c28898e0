"""What holds on new images: sampling errors, intervals and bounds of what a search found.

May import: errors, search.exact, search.problem.
"""
