"""Masks and fields against the truth."""
