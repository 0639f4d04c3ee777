"""Speed against peers, cost by size, and what a lent GPU is to run. See docs/performance.md."""
