"""Measurements that can be trusted: timing, what is recorded beside it, and what it is held against."""
