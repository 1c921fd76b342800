"""Measurements that the documents quote; run as `python -m benchmarks.NAME`."""
