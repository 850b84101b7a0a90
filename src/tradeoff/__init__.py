"""Published ways of spending less on a neural network, usable on your own model and checked.

Importing this package is cheap and pulls in no heavy dependency: import the part you need, for example
``tradeoff.engines.two_party`` or ``tradeoff.methods.private_inference.autorep``.
"""

__version__ = "0.1.0"
