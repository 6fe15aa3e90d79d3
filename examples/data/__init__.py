"""Data of the systems in examples/systems: one module a source, whose docstring names its licence."""
