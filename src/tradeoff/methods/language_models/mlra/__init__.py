"""MLRA: multi-head low-rank attention (Songtao Liu et al., ICLR 2026)."""

from .decode import Candidate, DecodeKernels, DecodeTime, time_decoding
from .errors import RankFailed
from .ranks import RankReport, run_ranks
from .traffic import RankTraffic, rank_traffic
from .training import Setup, train
from .variants import VARIANTS, convert, parameter_count, published, with_attention, with_parameters

__all__ = [
    "VARIANTS",
    "Candidate",
    "DecodeKernels",
    "DecodeTime",
    "RankFailed",
    "RankReport",
    "RankTraffic",
    "Setup",
    "convert",
    "parameter_count",
    "published",
    "rank_traffic",
    "run_ranks",
    "time_decoding",
    "train",
    "with_attention",
    "with_parameters",
]
