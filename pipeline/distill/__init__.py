"""Structural distillation: self-similarity of network features against SAM's."""
