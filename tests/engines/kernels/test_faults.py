"""Every wrong operand gives its named error, before any kernel runs."""

import re

import pytest
import torch

from tradeoff.core.errors import EngineError
from tradeoff.engines.kernels import (
    CBSR,
    BackendError,
    Graph,
    NanError,
    OperandError,
    cbsr_sddmm,
    cbsr_spmm,
    maxk,
    sddmm,
    spmm,
)

GRAPH = Graph.from_coo([0, 0, 1, 2], [0, 1, 2, 0], torch.tensor([1.0, 2, 3, 4]), (4, 3))
X, Y = torch.ones(3, 6), torch.ones(4, 6)
H = maxk(X, 2)
META = torch.device("meta")
STORAGE = torch.ones(48)

BAD = {
    "x has 5 rows, Graph(4 x 3, nnz=4, float32, cpu) needs 3": lambda: spmm(GRAPH, torch.ones(5, 2)),
    "x is float32, float64, float16 or bfloat16, not torch.int64": lambda: spmm(GRAPH, X.long()),
    "x is a dense matrix, not of shape (3,)": lambda: spmm(GRAPH, torch.ones(3)),
    "x is a dense matrix": lambda: spmm(GRAPH, X.to_sparse()),
    "x is a torch tensor, not list": lambda: spmm(GRAPH, [[1.0]]),
    "x is on meta, the graph on cpu": lambda: spmm(GRAPH, X.to(META)),
    "x is not contiguous, with strides (1, 3)": lambda: spmm(GRAPH, torch.ones(2, 3).T, strict=True),
    "the weights are torch.float32, features of torch.float64 need": lambda: spmm(GRAPH, X.double()),
    "out must be contiguous, (4, 6)": lambda: spmm(GRAPH, X, out=torch.ones(4, 5)),
    "out overlaps x": lambda: spmm(GRAPH, STORAGE[:18].view(3, 6), out=STORAGE[6:30].view(4, 6)),
    "out= has no gradient": lambda: spmm(GRAPH, X.clone().requires_grad_(), out=torch.empty(4, 6)),
    "k is a whole number from 1 to the 6 columns of x, not 0": lambda: maxk(X, 0),
    "not 7": lambda: maxk(X, 7),
    "not 2.0": lambda: maxk(X, 2.0),  # type: ignore[arg-type]
    "not True": lambda: maxk(X, True),
    "nan_policy is one of raise, largest": lambda: maxk(X, 2, nan_policy="omit"),
    "x has 40000 columns": lambda: maxk(torch.ones(1, 40000), 2),
    "features.values has 4 rows": lambda: cbsr_spmm(GRAPH, maxk(Y, 2)),
    "grad has 3 rows": lambda: cbsr_sddmm(GRAPH, X, H),
    "grad has 7 columns, the compressed matrix 6": lambda: cbsr_sddmm(GRAPH, torch.ones(4, 7), H),
    "the compressed matrix has 4 rows": lambda: cbsr_sddmm(GRAPH, Y, maxk(Y, 2)),
    "y has 6 columns, x has 5": lambda: sddmm(GRAPH, Y, torch.ones(3, 5)),
    "y is torch.float32, x is torch.float64": lambda: sddmm(GRAPH, Y, X.double()),
    "values (3, 2) and index (3, 1) have different shapes": lambda: CBSR(H.values, H.index[:, :1], 6),
    "index of 300 columns is torch.int16, not torch.uint8": lambda: CBSR(H.values, H.index, 300),
    "count is int32 with one number a row": lambda: CBSR(H.values, H.index, 6, torch.ones(2)),
    "num_columns is from 0 to 32768": lambda: CBSR(H.values, H.index, 40000),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_operands(message: str) -> None:
    with pytest.raises(OperandError, match=re.escape(message)) as raised:
        BAD[message]()
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, EngineError)


def test_nan_names_its_row(backend) -> None:
    x = torch.ones(9, 20)
    x[4, 3] = x[7, 1] = torch.nan
    with pytest.raises(NanError, match="NaN in row 4") as raised:
        maxk(x, 3, backend=backend)
    assert raised.value.row == 4


def test_backends_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for backend, message in (("mkl", "one of auto, cpp"), ("triton", "needs a GPU")):
        with pytest.raises(BackendError, match=message):
            spmm(GRAPH, X, backend=backend)
    with pytest.raises(BackendError, match="strategy is one of"):
        spmm(GRAPH, X, strategy="columns")
    monkeypatch.setattr("tradeoff.engines.kernels.backends.native_kernels", lambda: None)
    with pytest.raises(BackendError, match="needs the compiled extension"):
        spmm(GRAPH, X, backend="cpp")
    assert torch.equal(spmm(GRAPH, X), GRAPH.to_dense() @ X)


def test_the_extension_checks_what_would_overrun(require) -> None:
    from tradeoff.core import native

    kernels = native.extension()
    require(kernels, "the compiled extension is missing")
    indptr, indices, values = GRAPH.indptr.numpy(), GRAPH.indices.numpy(), GRAPH.values.numpy()
    x, y = X.numpy(), Y.numpy()
    with pytest.raises(ValueError, match="indptr does not end where indices end"):
        kernels.sparse_spmm(indptr[:-1], indices[:1], values[:1], x, y, 1)
    with pytest.raises(ValueError, match="result has another shape"):
        kernels.sparse_spmm(indptr, indices, values, x, y[:2], 1)
    with pytest.raises(ValueError, match="different sizes"):
        kernels.sparse_spmm(indptr, indices, values[:1], x, y, 1)
    with pytest.raises(TypeError):
        kernels.sparse_spmm(indptr, indices, values, x.astype("int64"), y, 1)
    with pytest.raises(ValueError, match="k is out of range"):
        kernels.maxk_select(x, 9, None, H.values.numpy(), H.index.numpy(), 1)
