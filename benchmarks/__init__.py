"""Benchmarks: each row is measured as a ratio against a floor, in alternation, in the same run.

Run `python -m benchmarks --help`.
"""
