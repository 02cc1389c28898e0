"""The command line: parse, call one function of `mess.workflow`, print.

May import: errors, common, runtime, sentences, workflow.
"""
