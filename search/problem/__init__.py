"""What is searched: tables, costs, request, space, and the plain definition of the best.

May import: errors, exits, common, signals.
"""
