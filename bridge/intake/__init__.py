"""Doors in: one file per way that an image arrives."""
