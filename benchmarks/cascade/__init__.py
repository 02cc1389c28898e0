"""Layer Cascade (MESS paper, §6.2), as something to compare with."""
