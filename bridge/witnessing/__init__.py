"""Witnesses: those that the log asks, and the one that a site is for others."""
