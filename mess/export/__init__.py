"""Parts of a network as programs, and the bundle of an instance."""
