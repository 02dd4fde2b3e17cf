"""Numbers about results: mask AP and the quality of pseudo-labels."""
