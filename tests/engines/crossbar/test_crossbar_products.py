"""Products in crossbars: exact against integers, the fast path against the sliced one, both against cells."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.engines.crossbar import (
    CrossbarConfig,
    CrossbarLinear,
    Encoding,
    FaultModel,
    InputRange,
    InvalidConfig,
    InvalidOperand,
)
from tradeoff.engines.crossbar.reference import product_by_cells

HFO2 = FaultModel.preset("hfo2")


def layer(
    weight: torch.Tensor,
    config: CrossbarConfig,
    faults: FaultModel | None = None,
    signed: bool = True,
    bias: torch.Tensor | None = None,
) -> CrossbarLinear:
    """Integer weights with scale 1: every output has one weight that is the largest there is."""
    return CrossbarLinear(weight, bias, config, InputRange(1.0, signed, config.act_bits), faults)


def weights(outputs: int, inputs: int, seed: int = 0, bits: int = 8) -> torch.Tensor:
    """Integer weights; each output holds the largest code, so that quantization leaves them alone."""
    largest = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-largest, largest + 1, (outputs, inputs), generator=generator)
    codes[:, 0] = largest
    return codes.float()


def vectors(count: int, inputs: int, signed: bool = True, seed: int = 1, bits: int = 8) -> torch.Tensor:
    largest = 2 ** (bits - signed) - 1
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest * signed, largest + 1, (count, inputs), generator=generator).float()


@pytest.mark.parametrize("cell_bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["offset", "twos_complement", "differential"])
def test_decoding_undoes_encoding_for_every_weight(name, cell_bits):
    if name == "twos_complement" and cell_bits > 1:
        with pytest.raises(InvalidConfig, match="one bit"):
            Encoding(name, 8, cell_bits)
        return
    code = Encoding(name, 8, cell_bits)
    values = torch.arange(-127, 128)
    digits = code.encode(values)
    assert digits.shape == (code.slices, code.polarities, 255)
    assert digits.dtype == torch.int8
    assert digits.min() >= 0
    assert digits.max() < code.levels
    assert torch.equal(code.decode(digits), values)


SHAPES = [
    (random.Random(seed).randint(1, 40), random.Random(seed + 1000).randint(1, 75), seed)
    for seed in range(50)
]


@pytest.mark.parametrize(("outputs", "inputs", "seed"), SHAPES)
def test_ideal_converters_give_the_integer_product(outputs, inputs, seed):
    draw = random.Random(seed)
    signed, dac_bits, cell_bits = draw.random() < 0.5, draw.choice([1, 2]), draw.choice([1, 2, 4])
    encoding = draw.choice(["offset", "differential"] + ["twos_complement"] * (cell_bits == 1))
    config = CrossbarConfig(
        rows=16,
        cols=32,
        cell_bits=cell_bits,
        dac_bits=dac_bits,
        adc_bits=None,
        encoding=encoding,
        flip_columns=draw.random() < 0.5,
    )
    w, x = weights(outputs, inputs, seed), vectors(3, inputs, signed, seed)
    slow = layer(w, config, signed=signed)
    slow.path = "slow"
    expected = x.long() @ w.long().T
    assert torch.equal(slow.multiply(x), expected.double())
    assert torch.equal(layer(w, config, signed=signed).multiply(x).double(), expected.double())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("cell_bits", "dac_bits"), [(1, 1), (2, 1), (2, 2)])
def test_converters_are_lossless_at_the_least_bits_and_not_below(cell_bits, dac_bits, flip):
    config = CrossbarConfig(cell_bits=cell_bits, dac_bits=dac_bits, adc_bits=None, flip_columns=flip)
    bits = config.lossless_adc_bits()
    full = 128 * (2**dac_bits - 1) * (2**cell_bits - 1)
    assert bits == (full // 2 if flip else full).bit_length()
    # A column of full cells, and every input at its largest digit; half full where more would be inverted.
    w = torch.full((1, 128), 127.0)
    if flip:
        w[:, 64:] = 0.0
    x = torch.full((1, 128), 255.0)
    products = []
    for adc_bits in (bits, bits - 1):
        placed = layer(
            w,
            CrossbarConfig(cell_bits=cell_bits, dac_bits=dac_bits, adc_bits=adc_bits, flip_columns=flip),
            signed=False,
        )
        assert placed.fast == (adc_bits == bits)
        placed.path = "slow"
        products.append(float(placed.multiply(x)))
    assert products[0] == float(x @ w.T)
    assert products[1] != products[0]


def test_isaac_needs_eight_bits_for_cells_of_one_and_nine_for_two():
    assert CrossbarConfig(cell_bits=1).lossless_adc_bits() == 8
    assert CrossbarConfig(cell_bits=2).lossless_adc_bits() == 9
    assert CrossbarConfig(cell_bits=2, flip_columns=True).lossless_adc_bits() == 8


@pytest.mark.parametrize("seed", range(20))
def test_the_fast_product_is_the_sliced_one_bit_for_bit_on_a_faulty_chip(seed):
    draw = random.Random(seed)
    cell_bits = draw.choice([1, 2, 3])
    config = CrossbarConfig(
        rows=32,
        cols=64,
        cell_bits=cell_bits,
        dac_bits=draw.choice([1, 2, 3]),
        adc_bits=draw.choice([None, 12]),
        encoding=draw.choice(["offset", "differential"]),
        flip_columns=draw.random() < 0.5,
        faulty_bias_column=False,
    )
    signed = draw.random() < 0.5
    torch.manual_seed(seed)
    w, bias = torch.randn(23, 70), torch.randn(23)
    x = torch.randn(5, 70) if signed else torch.rand(5, 70)
    inputs = InputRange.covering(float(x.min()), 0.8 * float(x.abs().max()), 8)
    fast = CrossbarLinear(w, bias, config, inputs, HFO2.chip(seed))
    slow = CrossbarLinear(w, bias, config, inputs, HFO2.chip(seed), path="slow")
    assert fast.fast
    assert fast.stuck > 0
    assert torch.equal(fast(x), slow(x))
    assert not torch.equal(fast(x), CrossbarLinear(w, bias, config, inputs)(x))


@pytest.mark.parametrize("variation", ["lognormal", "gaussian"])
@pytest.mark.parametrize("reference_column", [True, False])
def test_the_fast_product_is_the_sliced_one_with_variation(variation, reference_column):
    config = CrossbarConfig(
        rows=32, cols=64, cell_bits=2, adc_bits=None, reference_column=reference_column, dac_bits=2
    )
    faults = FaultModel(0.02, 0.01, sigma_program=0.2, variation=variation, seed=3)
    w, x = weights(9, 50), vectors(4, 50)
    fast, slow = layer(w, config, faults), layer(w, config, faults)
    slow.path = "slow"
    torch.testing.assert_close(fast.multiply(x), slow.multiply(x), rtol=1e-9, atol=1e-6)
    assert float((fast.effective_codes() - w).abs().max()) > 1


def test_a_faulty_column_of_ones_is_the_same_in_both_paths():
    config = CrossbarConfig(rows=32, cols=64, cell_bits=2, adc_bits=None, faulty_bias_column=True)
    faults = FaultModel(0.1, 0.1, seed=1)
    w, x = weights(9, 50), vectors(4, 50)
    fast, slow = layer(w, config, faults), layer(w, config, faults)
    slow.path = "slow"
    assert torch.equal(fast.multiply(x).double(), slow.multiply(x))
    exact = layer(w, CrossbarConfig(rows=32, cols=64, cell_bits=2, adc_bits=None), faults)
    difference = (fast.effective_codes() - exact.effective_codes()) / 128
    # 1 - b of each word line, the same for all outputs: 1 where its cell is stuck off, -2 where it is on.
    assert torch.equal(difference, difference[:1].expand_as(difference))
    assert set(difference.unique().tolist()) == {-2.0, 0.0, 1.0}


@pytest.mark.parametrize("adc_bits", [None, 2])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("encoding", "cell_bits", "cols"),
    [("offset", 1, 8), ("offset", 2, 8), ("twos_complement", 1, 8), ("differential", 2, 8)],
)
def test_a_walk_over_the_cells_agrees(encoding, cell_bits, cols, signed, adc_bits):
    config = CrossbarConfig(
        rows=3, cols=cols, cell_bits=cell_bits, adc_bits=adc_bits, encoding=encoding, act_bits=8
    )
    faults = FaultModel(0.15, 0.1, seed=7)
    w, x = weights(5, 7), vectors(1, 7, signed)
    placed = CrossbarLinear(w, None, config, InputRange(1.0, signed, 8), faults, first_crossbar=11)
    placed.path = "slow"
    codes = [[int(v) for v in row] for row in w]
    expected = product_by_cells(codes, [int(v) for v in x[0]], config, faults, signed, first=11)
    assert placed.multiply(x)[0].tolist() == expected
    unbroken = product_by_cells(codes, [int(v) for v in x[0]], config, FaultModel(), signed, first=11)
    assert expected != unbroken


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([1, 2, 3, 4, 5, 6]))
def test_coarse_converters_clip_or_round_what_each_column_reads(outputs, inputs, seed, adc_bits):
    """Against the definition, written out for one cell bit and unsigned inputs."""
    for adc_range in ("saturate", "scaled"):
        config = CrossbarConfig(rows=16, cols=8, adc_bits=adc_bits, adc_range=adc_range)
        w, x = weights(outputs, inputs, seed), vectors(2, inputs, signed=False, seed=seed)
        placed = layer(w, config, signed=False)
        total = torch.zeros(2, outputs, dtype=torch.float64)
        for start in range(0, inputs, 16):
            part, rows = w[:, start : start + 16].long() + 128, x[:, start : start + 16].long()
            used = rows.shape[1]
            step = 1 if adc_range == "saturate" else max(1, -(-used // (2**adc_bits - 1)))
            for cycle in range(8):
                for place in range(8):
                    current = ((rows >> cycle) & 1) @ ((part >> place) & 1).T
                    read = (current.double() / step).round().clamp(0, 2**adc_bits - 1) * step
                    total += 2.0 ** (cycle + place) * read
        total -= 128 * x.double().sum(1, keepdim=True)
        placed.path = "slow"
        assert torch.equal(placed.multiply(x), total)


@pytest.mark.parametrize(("cell_bits", "on"), [(1, 127), (2, 127), (3, 383)])
def test_chips_that_are_stuck_altogether(cell_bits, on):
    w, x, bias = weights(4, 20), vectors(3, 20), torch.tensor([0.5, -1.0, 0.0, 2.0])
    config = CrossbarConfig(rows=16, cols=32, cell_bits=cell_bits)
    for faults, code in ((FaultModel(0.0, 1.0), -128), (FaultModel(1.0, 0.0), on)):
        placed = layer(w, config, faults, bias=bias)
        assert (placed.effective_codes() == code).all()
        assert torch.equal(placed(x), code * x.sum(1, keepdim=True) + bias)
        assert torch.equal(placed.effective_weight(), torch.full((4, 20), float(code)))


@pytest.mark.parametrize("inputs", [1024, 1025, 2500])
def test_long_sums_are_exact(inputs):
    """The largest sums there are, beyond 2^24 from 1041 inputs on, and odd: they need the last bit."""
    w = torch.full((2, inputs), 127.0)
    w[1] = -127.0
    x = torch.full((1, inputs), 127.0)
    x[0, -1] = 2.0 if inputs % 2 == 0 else 1.0
    expected = int(x.long().sum()) * 127
    placed = layer(w, CrossbarConfig(adc_bits=None))
    assert placed.multiply(x).double()[0].tolist() == [expected, -expected]
    faulty = layer(w, CrossbarConfig(adc_bits=None), FaultModel(0.0, 1.0))
    assert faulty.multiply(x).double()[0].tolist() == [-128 * int(x.long().sum())] * 2


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_products_stay_exact_where_torch_may_round_them(precision):
    torch.manual_seed(0)
    w, x = weights(30, 600), vectors(20, 600)
    placed = layer(w, CrossbarConfig())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(placed(x).double(), x.double() @ w.double().T)
    finally:
        torch.set_float32_matmul_precision(before)


def test_read_noise_has_the_variance_of_its_cells_and_is_that_of_the_chip():
    config = CrossbarConfig(rows=64, adc_bits=None, g_min=1e-9)
    faults = FaultModel(sigma_read=0.05, seed=4)
    w, x = weights(3, 64), vectors(1, 64, signed=False).expand(4000, 64)
    placed = layer(w, config, faults, signed=False)
    assert not placed.fast
    noise = placed.multiply(x) - x.double() @ w.double().T
    bits = (w.long()[None] + 128 >> torch.arange(8)[:, None, None]) & 1
    lines = (x[:1].long() >> torch.arange(8)[:, None]) & 1
    power = torch.einsum("ti,coi,t,c->o", lines, bits, 4 ** torch.arange(8), 4 ** torch.arange(8)).double()
    expected = 0.05 * power.sqrt()
    assert ((noise.std(0) / expected - 1).abs() < 0.06).all()
    assert ((noise.mean(0) / expected).abs() < 4 / 4000**0.5).all()
    again = layer(w, config, faults, signed=False)
    assert torch.equal(again.multiply(x) - x.double() @ w.double().T, noise)


def test_half_precision_and_double_inputs():
    torch.manual_seed(0)
    w, x = torch.randn(6, 40), torch.randn(3, 40)
    placed = CrossbarLinear(w, None, CrossbarConfig(), InputRange.covering(-3.0, 3.0, 8))
    out = placed(x)
    assert placed(x.double()).dtype == torch.float64
    torch.testing.assert_close(placed(x.double()).float(), out)
    rounded = placed(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    placed.path = "slow"
    assert torch.equal(placed(x.bfloat16()), rounded)
    assert placed(x[0]).shape == (6,)
    assert placed(torch.zeros(0, 40)).shape == (0, 6)
    assert placed(torch.zeros(2, 0, 40)).shape == (2, 0, 6)


def test_bad_numbers_name_the_layer():
    inputs = InputRange(1.0, True, 8)
    good = CrossbarLinear(torch.randn(2, 3), None, CrossbarConfig(), inputs, name="encoder.0")
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.zeros(1, 3)
        x[0, 1] = bad
        with pytest.raises(InvalidOperand, match=r"encoder\.0: inputs hold NaN or infinity"):
            good(x)
        with pytest.raises(ValueError, match=r"encoder\.1: weights hold NaN"):
            CrossbarLinear(x, None, CrossbarConfig(), inputs, name="encoder.1")
    assert torch.isfinite(good(torch.full((1, 3), 3e38))).all()  # whose sum overflows
    with pytest.raises(InvalidOperand, match="takes 3 inputs"):
        good(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adc_bits": 0}, "adc_bits is 0"),
        ({"weight_bits": 1}, "weight_bits is 1"),
        ({"act_bits": 0}, "act_bits is 0"),
        ({"cell_bits": 9}, "cell_bits is 9"),
        ({"cell_bits": 8, "encoding": "differential"}, "1 to 7"),
        ({"cell_bits": 2, "encoding": "twos_complement"}, "one bit"),
        ({"encoding": "unary"}, "unary"),
        ({"cols": 7}, "takes 8 columns"),
        ({"cols": 13, "encoding": "differential"}, "takes 14 columns"),
        ({"dac_bits": 9}, "dac_bits is 9"),
        ({"rows": 0}, "rows is 0"),
        ({"g_min": 1.0}, "g_min < g_max"),
        ({"adc_range": "clip"}, "saturate or scaled"),
        ({"faulty_bias_column": True, "encoding": "differential"}, "bias column"),
    ],
)
def test_arrays_that_cannot_be_built(changes, message):
    with pytest.raises(InvalidConfig, match=message):
        CrossbarConfig(**changes)


def test_a_pair_mapping_that_leaves_the_cell_is_refused():
    config = CrossbarConfig(cell_bits=2, encoding="differential", pair=lambda digit, levels: digit + levels)
    with pytest.raises(InvalidConfig, match="pair mapping gives digits"):
        layer(weights(2, 3), config)
