"""The benchmarks: parametrized cases over model, method, bits and backend, and the pytest plugin that records them."""
