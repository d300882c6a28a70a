"""Thirty hippocampus scans that ship with the package, and the data set that the demo builds of them."""
