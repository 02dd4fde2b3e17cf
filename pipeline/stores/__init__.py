"""Precomputed, immutable, checked: what SAM made of every image, and who made it with which settings."""
