"""The offline phase without a dealer: correlated randomness from oblivious transfer."""

from tradeoff.engines.two_party.ot.source import ObliviousSource, offline_traffic, setup_traffic

__all__ = ["ObliviousSource", "offline_traffic", "setup_traffic"]
