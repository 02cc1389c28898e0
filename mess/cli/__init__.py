"""The command line: parse, call one function of `mess.workflow`, print."""
