"""AutoReP: automatic ReLU replacement under a budget (ICCV 2023)."""
