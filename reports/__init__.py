"""Reads saved runs and says what they mean: the record's schema, its statistics, tables and advice.

This package reads records only. It imports nothing of the library, the fixtures or the benchmarks, so a saved run can
be read on a machine that could never have measured it.
"""
