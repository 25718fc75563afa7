"""What the loop costs, as ratios to what one would run instead: `python -m benchmarks`."""
