"""Planners: fingerprints in, plan out."""
