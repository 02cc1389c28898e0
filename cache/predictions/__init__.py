"""What every exit predicted for every image of a split."""
