"""From scans in their own grids to network input, aligned with the atlas."""
