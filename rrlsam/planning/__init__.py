"""From scans to a plan: fingerprints, the atlas's choice, preparation."""
