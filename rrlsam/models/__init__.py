"""Trained models: kept, found, carried elsewhere."""
