"""Benchmarks, one file each: a registered function makes one from the files and settings of a `Source`."""
