"""Reports made of the newest result files: README's part, docs/benchmarks.md, the roofline page, charts."""
