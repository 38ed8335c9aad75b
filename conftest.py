"""Loads the suite's pytest plugins for every folder of the project."""

pytest_plugins = ["fixtures.plugin", "benchmarks.plugin", "benchmarks.reliability.plugin", "pytester"]
