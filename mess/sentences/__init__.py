"""What results say, in sentences: for the terminal, the report and messages.

May import: common, search.guarantees.
"""
