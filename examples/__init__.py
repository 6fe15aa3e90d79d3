"""Training on real data, plain against fused: `python -m hybridops demo` runs what is here."""
