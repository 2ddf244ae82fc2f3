"""Tests against real kernels and real peers; see `integration/lab`."""
