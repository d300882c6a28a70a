"""Training batches: scans sampled onto the atlas grid."""
