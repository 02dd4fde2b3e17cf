"""Networks that segment what a sentence speaks of, and their training with and without labels (SemiRES)."""
