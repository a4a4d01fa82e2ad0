"""Findings become objects: SEG, SR and summary image. Pure: no I/O, no clock, no randomness."""
