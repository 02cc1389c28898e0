"""What decides whether an image leaves: signals, what they are made of, the decision."""
