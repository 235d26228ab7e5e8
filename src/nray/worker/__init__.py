"""What runs in a forked process: slices in, hits out."""
