"""Benchmarks; each prints one JSON line per case: ours, the peer, the ratio. See `common`."""
