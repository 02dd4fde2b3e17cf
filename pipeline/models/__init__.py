"""Mask2Former teacher and student on MMDetection, and the training hooks."""
