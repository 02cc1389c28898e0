"""The work behind each command, where network, cache and search meet; see `mess.workflow`."""
