"""Training of the small networks that are shipped in ``pipeline/assets``."""
