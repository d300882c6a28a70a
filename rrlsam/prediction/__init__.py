"""Trained models on new scans, and how far to trust what they say."""
