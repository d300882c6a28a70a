"""Registrations of two scans: found, applied, written as files."""
