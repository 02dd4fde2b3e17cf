"""What ``pseudo-label`` reads, makes and counts."""
