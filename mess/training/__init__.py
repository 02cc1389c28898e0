"""Training schemes, their stages, the loop, the losses."""
