"""Metrics as pure functions: texts in, numbers out. They know no files and no benchmarks."""
