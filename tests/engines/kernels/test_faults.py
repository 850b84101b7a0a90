"""Every wrong operand gives its named error, before any kernel runs."""

import re

import numpy as np
import pytest
import torch

from tradeoff.core import native
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


def columns(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def counted(counts: list[int], index: torch.Tensor, values: torch.Tensor) -> CBSR:
    return CBSR(values, index, 6, torch.tensor(counts, dtype=torch.int32))


TWO = torch.ones(2, 2)

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
    "index[1, 1] is 6, must be from 0 to 5": lambda: CBSR(TWO, columns([0, 5], [2, 6]), 6),
    "index[0, 0] is -1, must be from 0 to 299": lambda: CBSR(
        TWO, torch.tensor([[-1, 5], [2, 3]], dtype=torch.int16), 300
    ),
    "index[1, 1] is 2 after 2": lambda: CBSR(TWO, columns([0, 5], [2, 2]), 6),
    "index[0, 1] is 0 after 5": lambda: CBSR(TWO, columns([5, 0], [2, 3]), 6),
    "index[1, 0] is 7, must be from 0 to 5": lambda: cbsr_sddmm(GRAPH, Y, columns([0, 1], [7, 2], [0, 1])),
    "count[1] is 3, must be from 0 to k = 2": lambda: counted([2, 3], columns([0, 5], [2, 3]), TWO),
    "count[0] is -1, must be from 0 to k = 2": lambda: counted([-1, 2], columns([0, 5], [2, 3]), TWO),
    "row 0 counts 1 entries, so entry 1 is padding: value 0 at column 1, not 1.0 at 1": lambda: counted(
        [1, 2], columns([1, 1], [2, 3]), TWO
    ),
    "row 1 counts 0 entries, so entry 0 is padding: value 0 at column 0, not 0.0 at 2": lambda: counted(
        [2, 0], columns([0, 1], [2, 2]), torch.tensor([[1.0, 1], [0, 0]])
    ),
    "values are on cpu, index or count on another": lambda: CBSR(TWO, columns([0, 5], [2, 3]).to(META), 6),
    "values (3, 3) on cpu do not fit columns (3, 2)": lambda: H.with_values(torch.ones(3, 3)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_operands(message: str) -> None:
    with pytest.raises(OperandError, match=re.escape(message)) as raised:
        BAD[message]()
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, EngineError)


def test_matrices_that_keep_the_rules_pass() -> None:
    h = counted([1, 0], columns([3, 3], [0, 0]), torch.tensor([[7.0, 0], [0, 0]]))
    assert h.to_dense().tolist() == [[0, 0, 0, 7, 0, 0], [0] * 6]
    for k in (1, 3, 6):
        for clip in (False, True):
            made = maxk(torch.randn(9, 6), k, clip=clip)
            again = CBSR(made.values, made.index, 6, made.count)
            assert torch.equal(again.to_dense(), made.to_dense())
    assert CBSR(torch.ones(3, 0), columns([], [], []), 0).shape == (3, 0)
    assert CBSR(torch.ones(0, 2), torch.empty(0, 2, dtype=torch.int16), 300).shape == (0, 300)


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
    kernels = native.extension()
    require(kernels, "the compiled extension is missing")
    indptr, indices, values = GRAPH.indptr.numpy(), GRAPH.indices.numpy(), GRAPH.values.numpy()
    x, y = X.numpy(), Y.numpy()
    with pytest.raises(ValueError, match="indptr does not end where indices end"):
        kernels.sparse_spmm(indptr[:-1], indices[:1], values[:1], x, y, None, 1)
    with pytest.raises(ValueError, match="result has another shape"):
        kernels.sparse_spmm(indptr, indices, values, x, y[:2], None, 1)
    with pytest.raises(ValueError, match="different sizes"):
        kernels.sparse_spmm(indptr, indices, values[:1], x, y, None, 1)
    with pytest.raises(TypeError):
        kernels.sparse_spmm(indptr, indices, values, x.astype("int64"), y, None, 1)
    for order, message in (
        ([0, 1, 2], "another size"),
        ([0, 1, 2, 4], "does not have"),
        ([0, 1, -1, 2], "not"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.sparse_spmm(indptr, indices, values, x, y, np.array(order, np.int32), 1)
    with pytest.raises(ValueError, match="k is out of range"):
        kernels.maxk_select(x, 9, None, H.values.numpy(), H.index.numpy(), 1)


def test_the_compressed_linear_layer_checks_what_would_overrun(require) -> None:
    kernels = native.extension()
    require(kernels, "the compiled extension is missing")
    values, index = H.values.numpy(), H.index.numpy()  # [3, 2] of 6 columns
    weight, outputs, short = (np.ones(shape, np.float32) for shape in ((6, 5), (3, 5), (2, 5)))
    good = {
        "cbsr_linear": [values, index, weight, outputs, outputs.copy()],
        "cbsr_linear_values": [outputs, weight, index, values.copy()],
        "cbsr_linear_weight": [outputs, values, index, weight.copy()],
    }
    bad = {
        "cbsr_linear": [(0, values[:, :1]), (1, index[:2]), (2, weight[:, :4]), (3, short), (4, short)],
        "cbsr_linear_values": [(0, short), (1, weight[:, :4]), (2, index[:2]), (3, values[:2])],
        "cbsr_linear_weight": [(0, short), (1, values[:, :1]), (2, index[:2]), (3, weight[:, :4])],
    }
    for name, operands in good.items():
        getattr(kernels, name)(*operands, 1)
        for position, wrong in bad[name]:
            changed = list(operands)
            changed[position] = np.ascontiguousarray(wrong)
            with pytest.raises(ValueError, match="shape"):
                getattr(kernels, name)(*changed, 1)
