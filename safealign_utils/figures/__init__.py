"""Drawings: every function takes tables and returns a figure."""
