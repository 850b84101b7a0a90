"""Offline pools (placeholder until files are written)."""


def open_pool(net, program, batch, folder):  # type: ignore[no-untyped-def]
    raise NotImplementedError
