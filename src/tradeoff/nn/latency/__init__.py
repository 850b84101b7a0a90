"""What a network costs between two parties, operator by operator, by a model: FPGA formulas and schedules."""

from tradeoff.nn.latency.counts import ReLUCount
from tradeoff.nn.latency.fpga import FPGALatency
from tradeoff.nn.latency.model import LatencyModel, MissingLatency, NetworkLatency, OperatorLatency
from tradeoff.nn.latency.proxy import ReleasedProxy
from tradeoff.nn.latency.scheduler import Schedule, Task, schedule

__all__ = [
    "FPGALatency",
    "LatencyModel",
    "MissingLatency",
    "NetworkLatency",
    "OperatorLatency",
    "ReLUCount",
    "ReleasedProxy",
    "Schedule",
    "Task",
    "schedule",
]
