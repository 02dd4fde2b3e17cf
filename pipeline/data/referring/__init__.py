"""Referring expressions as training and evaluation data: RefCOCO, RefCOCO+, G-Ref, gRefCOCO, the embedded scenes."""
