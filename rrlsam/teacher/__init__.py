"""SAM as the teacher: its weights, its cached features, and general encoders distilled from it."""
