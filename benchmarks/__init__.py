"""Speed compared with peers, cost by size, and the runs for a lent GPU. See docs/performance.md."""
