"""SSNet: inference on Shamir shares among three and more servers (Duan et al., 2024)."""

from .comparison import Setting, compare_settings
from .peers import PeerRun, run_mpyc

__all__ = ["PeerRun", "Setting", "compare_settings", "run_mpyc"]
