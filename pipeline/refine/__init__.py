"""Refiners: teacher masks in, better masks and an outcome for each out."""
