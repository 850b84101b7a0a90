"""Devices that are not here, as tables with sources: what latency models need to know of them."""

from tradeoff.data.devices.boards import BOARDS, Board, fpga_latency, latency_model

__all__ = ["BOARDS", "Board", "fpga_latency", "latency_model"]
