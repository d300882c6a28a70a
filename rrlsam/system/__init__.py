"""Files, locks, threads, signals and memory: what the machine gives and takes."""
