"""Speed and memory, eager against torch.compile against fused: `python -m hybridops bench`, `benchmarks/compare.py`."""
