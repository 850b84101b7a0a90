"""The one table of quantities: what may be measured, in which unit, and which direction is better.

A new quantity is a new row here, never an invention inside a method: two systems that trade the same thing
must name it alike, or they could not be compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .errors import UnknownQuantity
from .suggest import did_you_mean


class Direction(StrEnum):
    """Which way a quantity improves."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Quantity:
    """A named thing that is measured.

    Attributes:
        name: the key in outcomes and tables.
        unit: of its values; empty for plain counts and fractions.
        direction: which way it improves.
        description: one line for tables and pages.
        repeatable: whether the same trial must give the same value again; false for clocks,
            memory and what secret random masks decide.
    """

    name: str
    unit: str
    direction: Direction
    description: str
    repeatable: bool = True

    def better(self, a: float, b: float) -> bool:
        """Whether value ``a`` is strictly better than value ``b``."""
        return a > b if self.direction is Direction.HIGHER else a < b


def _rows(direction: Direction, *rows: tuple[str, str, str], repeatable: bool = True) -> Iterable[Quantity]:
    return (Quantity(name, unit, direction, text, repeatable) for name, unit, text in rows)


_TABLE = (
    *_rows(
        Direction.HIGHER,
        ("accuracy", "", "fraction of held-out examples classified correctly"),
        ("linearized_accuracy", "", "accuracy before polynomials replace the activations that are left"),
        ("auc", "", "area under the receiver operating characteristic on held-out examples"),
        ("auc_new", "", "the same on held-out pairs of nodes that never met before"),
        ("f1", "", "harmonic mean of precision and recall on held-out examples"),
        ("ndcg", "", "normalized discounted cumulative gain of a ranking, cut at 10"),
        ("episode_return", "", "sum of rewards of an episode, mean over the last episodes of a training"),
        ("success_rate", "", "fraction of tasks solved"),
        ("sparsity", "", "fraction of weights that are zero"),
        ("training_sparsity", "", "fraction of weights that were inactive, over all optimizer steps"),
        ("itop_rate", "", "fraction of weights that were active at some time of the training"),
        ("tokens_per_step", "tokens", "tokens accepted per pass through the model"),
        ("identical", "", "fraction of texts that are those of plain greedy decoding, token for token"),
    ),
    *_rows(
        Direction.LOWER,
        ("loss", "", "the training objective on held-out examples"),
        ("auc_error", "", "standard error of auc that follows from the number of held-out examples"),
        ("text_loss", "", "mean negative log-likelihood of a token under the model that wrote it"),
        ("draft_tokens", "tokens", "guesses that one pass through the model verifies"),
        ("validation_loss", "", "the training objective on the examples by which a step is chosen"),
        ("student_kl", "", "divergence of a student's predictions from those of the network it imitates"),
        ("perplexity", "", "exponential of the mean negative log-likelihood of a held-out token"),
        ("relu_count", "ReLUs", "comparisons left in the network, per image"),
        ("relu_sites", "sites", "activation sites of the network that still compare"),
        ("pooling_comparisons", "comparisons", "of secret numbers in max poolings, per image"),
        ("fpga_latency", "s", "time of one image between two FPGA boards, by the papers' formulas"),
        ("predicted_latency_lan", "s", "latency_lan as the calibrated model of the engine predicts it"),
        ("predicted_latency_wan", "s", "latency_wan as the calibrated model of the engine predicts it"),
        ("predicted_latency_narrow", "s", "latency_narrow as the calibrated model of the engine predicts it"),
        ("swap_logit", "", "base-10 logarithm of the largest logit just after activations were swapped"),
        ("mask_flips", "flips", "changes of a selection mask beyond those that its final state needs"),
        ("online_bytes", "B", "bytes that the parties exchange for one batch, both directions"),
        ("offline_bytes", "B", "bytes of correlated randomness prepared ahead for one batch"),
        ("rounds", "rounds", "messages that must wait for one another"),
        ("he_levels", "levels", "multiplicative depth of a homomorphic evaluation"),
        ("he_rotations", "rotations", "rotations of ciphertexts in one homomorphic evaluation"),
        ("he_plain_products", "products", "products of a ciphertext and known numbers in one evaluation"),
        ("he_products", "products", "products of two ciphertexts in one evaluation"),
        ("he_modulus_bits", "bits", "size of the whole modulus of a homomorphic scheme"),
        ("he_scale_bits", "bits", "size of the factor by which encrypted numbers are multiplied"),
        ("he_ring", "", "degree of the ring of a homomorphic scheme"),
        ("he_keys", "keys", "evaluation keys that a homomorphic evaluation needs"),
        ("activation_levels", "levels", "levels of a homomorphic evaluation that activations take"),
        ("parameters", "parameters", "trainable numbers in the model"),
        ("flops", "FLOP", "floating-point operations of one forward pass, a multiply-add counted as two"),
        ("macs", "MAC", "multiply-accumulates of one forward pass"),
        ("training_flops", "FLOP", "floating-point operations spent on training"),
        ("model_bytes", "B", "size of the stored model"),
        ("activation_bytes", "B", "kept by one block of a network for its backward pass"),
        ("kv_bytes_per_token", "B", "key and value cache held for one token of context"),
        ("allreduce_bytes", "B", "bytes that a rank gives into sums over ranks in one layer for one token"),
        ("tokens", "tokens", "tokens read and written by language models for one task"),
        ("cycles", "cycles", "clock cycles for one input"),
        ("luts", "LUTs", "lookup tables of an FPGA"),
        ("dsps", "DSPs", "multiplier blocks of an FPGA"),
        ("area", "um^2", "cell area of a synthesized circuit"),
        ("period", "ns", "shortest clock period of a synthesized circuit"),
        ("power", "W", "power while working"),
        ("energy", "J", "energy for one input"),
        ("metadata_bytes", "B", "size of the records by which a kernel finds its work"),
        ("padding", "", "room for work that a partition reserves, over the work"),
        ("imbalance", "", "end of the computed schedule of a partition, over that of even work"),
        ("average_degree", "", "entries of a row of the graph, on average"),
        ("best_rate", "octaves", "base-2 logarithm of the learning rate with the lowest loss"),
        ("rate_drift", "octaves", "distance of the best learning rate from the one that was tuned elsewhere"),
        ("regret", "", "loss at a learning rate tuned elsewhere over that at the best one, less 1"),
        ("tuning_flops", "FLOP", "floating-point operations of the trainings that chose the learning rate"),
        ("step_ratio", "", "steps until the loss that another training ends with, over that training's"),
        ("active_experts", "experts", "that a token passes in a layer, mean over the last 50 steps"),
        (
            "active_deviation",
            "experts",
            "standard deviation over the last 50 steps of the experts of a token",
        ),
        ("active_spread", "experts", "standard deviation over tokens of the experts of one, last 50 steps"),
        (
            "active_first_layer",
            "experts",
            "that a token passes in the first layer, mean over the last 50 steps",
        ),
        (
            "active_last_layer",
            "experts",
            "that a token passes in the last layer, mean over the last 50 steps",
        ),
        (
            "active_clean",
            "experts",
            "that a token passes in a layer in the quarter of images with least noise",
        ),
        (
            "active_noisy",
            "experts",
            "that a token passes in a layer in the quarter of images with most noise",
        ),
        (
            "budget_error",
            "",
            "distance of the active experts from their target over the last 50 steps, over it",
        ),
        ("budget_excursion", "", "largest such distance of a mean of 20 steps, once time to settle is over"),
        (
            "budget_drift",
            "",
            "change of the active experts, means of 20 steps, from then to the end, over the first",
        ),
        (
            "layer_error",
            "",
            "largest distance of a layer's active experts from the target, last 50 steps, over it",
        ),
        (
            "swings",
            "swings",
            "changes of the active experts from a fifth above target to a fifth below, or back",
        ),
        ("expert_imbalance", "", "tokens of a layer's busiest expert over the mean of all, last 50 steps"),
        (
            "expert_flops",
            "FLOP",
            "of the experts that a token passes, all layers, forward, mean over training",
        ),
    ),
    *_rows(
        Direction.LOWER,
        ("latency", "s", "time from input to result on this machine, over its own loopback"),
        ("latency_lan", "s", "time from input to result over the emulated local network"),
        ("latency_wan", "s", "time from input to result over the emulated wide-area network"),
        ("latency_narrow", "s", "time from input to result over the emulated near but slow network"),
        ("offline_seconds", "s", "time to prepare the correlated randomness for one batch"),
        ("evaluation_seconds", "s", "part of a homomorphic inference that is spent on ciphertexts"),
        ("encoding_seconds", "s", "part of a homomorphic inference that is spent on encoding known numbers"),
        ("key_seconds", "s", "time to make the evaluation keys and to send them"),
        ("key_bytes", "B", "evaluation keys that a client sends once"),
        ("ciphertext_bytes", "B", "encrypted inputs and results of one request, as compressed for sending"),
        ("training_seconds", "s", "time spent on training"),
        (
            "epoch_seconds",
            "s",
            "processor time (on a GPU: its time) of one training epoch over the whole data",
        ),
        ("product_seconds", "s", "processor time (on a GPU: its time) of one product with a sparse matrix"),
        (
            "decode_seconds",
            "s",
            "processor time (on a GPU: its time) of a token's attention over the cache, one layer of a rank",
        ),
        ("output_error", "", "largest absolute difference of a logit from one process's"),
        ("gradient_error", "", "largest absolute difference of an element of a gradient from one process's"),
        ("preprocessing_seconds", "s", "time to prepare a graph for its products"),
        ("step_cost", "", "time of a step that makes and verifies guesses, over that of a plain step"),
        ("slowdown", "", "time over that of this project's product by rows, measured by turns"),
        ("training_loss", "", "the training objective on the training examples after the last step"),
        ("aggregation_seconds", "s", "part of an epoch that sums over neighbors take, forward and backward"),
        (
            "own_product_seconds",
            "s",
            "part of an epoch that products of nodes' own features with weights take",
        ),
        ("activation_seconds", "s", "part of an epoch that the nonlinearity and dropout take"),
        ("peak_memory", "B", "largest resident memory while working"),
        ("logit_error_max", "", "largest absolute difference of a logit from the plaintext network's"),
        ("logit_error_mean", "", "mean absolute difference of the logits from the plaintext network's"),
        repeatable=False,
    ),
    *_rows(
        Direction.HIGHER,
        ("throughput", "1/s", "inputs processed per second"),
        ("tokens_per_second", "1/s", "tokens generated per second"),
        ("cache_bandwidth", "GB/s", "bytes of a key and value cache over the time of one token's attention"),
        ("read_bandwidth", "GB/s", "bytes of a large tensor over the time in which one thread adds it up"),
        ("speedup", "", "time per token of plain decoding over that of this one, by turns"),
        (
            "label_agreement",
            "",
            "fraction of examples where two executions of one network give the same label",
        ),
        repeatable=False,
    ),
)

QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in _TABLE}


def quantity(name: str) -> Quantity:
    """The row of a quantity.

    Raises:
        UnknownQuantity: no such row; the message names the nearest one.
    """
    try:
        return QUANTITIES[name]
    except KeyError:
        raise UnknownQuantity(
            f"unknown quantity {name!r}{did_you_mean(name, QUANTITIES)}; "
            "new quantities are added to tradeoff/core/quantities.py"
        ) from None
