"""Size, time and train attention variants whose cache several devices share."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Size, time and train attention whose cache several devices share.", no_args_is_help=True
)


@app.callback()
def _verbs() -> None:
    """Size, time and train attention whose cache several devices share."""


@app.command("convert-config")
def convert_config(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with the config.json of a checkpoint, or a variant of the paper's model."
        ),
    ],
    to: Annotated[str, typer.Option(help="mha, mqa, gqa, mla, gla2, gla4, mlra2 or mlra4.")] = "mlra4",
    kv_rank: Annotated[int | None, typer.Option(min=1, help="Numbers of a token's latents together.")] = None,
    q_rank: Annotated[int | None, typer.Option(min=1, help="Width of the query's bottleneck.")] = None,
    rope_dim: Annotated[int | None, typer.Option(min=2, help="Width of the shared rotary key.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key heads, of gqa alone.")] = None,
    multiple: Annotated[int, typer.Option(min=1, help="Of which the feed-forward width is one.")] = 8,
    out: Annotated[Path | None, typer.Option(help="File for the JSON; printed if not given.")] = None,
) -> None:
    """Write the configuration of as many parameters with another attention, as JSON.

    Only the configuration: a checkpoint's weights do not fit another attention, which is trained anew. Width,
    depth, heads, vocabulary and everything else stay; the feed-forward width makes up for the weights that
    attention gains or loses. The document has the fields of DecoderConfig, and what each of 1, 2, 4 and 8
    ranks would cache.
    """
    import json

    from tradeoff.core.files import write_json

    from .report import description
    from .variants import convert, read

    old = read(source)
    new = convert(
        old, to, multiple=multiple, kv_rank=kv_rank, q_rank=q_rank, rope_dim=rope_dim, kv_heads=kv_heads
    )
    document = description(old, new)
    if out is None:
        typer.echo(json.dumps(document, indent=1))
    else:
        write_json(out, document)


@app.command()
def bench(
    variants: Annotated[str, typer.Option(help="Names with commas between.")] = "gqa,mla,gla2,mlra2,mlra4",
    tp: Annotated[str, typer.Option(help="Ranks: 1,2,4,8; 1 is data parallelism.")] = "1,4",
    context: Annotated[str, typer.Option(help="Tokens in the cache: 16k,64k.")] = "16k,64k",
    heads: Annotated[int, typer.Option(min=1, help="Of the model.")] = 16,
    head_dim: Annotated[int, typer.Option(min=4, help="Width of a head.")] = 128,
    kv_rank: Annotated[int, typer.Option(min=4, help="Numbers of a token's latents together.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 9,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
) -> None:
    """Time one rank's attention for one token over a long cache, by turns; print bytes, times and ratios.

    One layer, absorbed where latents are cached; on a CPU with one thread, in processor time.
    """
    from rich.console import Console

    from .report import bench_document, bench_table, run_bench

    found = run_bench(
        _words(variants), _numbers(tp), _words(context), heads, head_dim, kv_rank, rounds, dtype, device
    )
    Console().print(bench_table(found))
    if json is not None:
        from tradeoff.core.files import write_json

        write_json(json, bench_document(found))


@app.command()
def train(
    variant: Annotated[
        str, typer.Option(help="Names with commas between; all have the parameters of mha.")
    ] = "mla,mlra4",
    corpus: Annotated[str, typer.Option(help="Text of tradeoff.data.text, or a file.")] = "foldoc",
    tokenizer: Annotated[str, typer.Option(help="bytes, or bpe:4096.")] = "bytes",
    dim: Annotated[int, typer.Option(min=8, help="Width of the model.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 8,
    kv_rank: Annotated[
        int | None, typer.Option(min=4, help="Of latents; four heads' widths if not given.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a step.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Of the training.")] = 200,
    lr: Annotated[float, typer.Option(min=1e-9, help="Highest learning rate of AdamW.")] = 0.005,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 1,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder for weights and configurations.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
) -> None:
    """Train variants of equal parameters on a text; print loss, perplexity and bytes of the cache."""
    from rich.console import Console

    from tradeoff.core.context import usable_device

    from .report import train_document, train_table, train_variants
    from .training import Setup

    setup = Setup(
        corpus=corpus,
        tokenizer=tokenizer,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_rank=kv_rank,
        length=length,
        batch=batch,
        steps=steps,
        learning_rate=lr,
    )

    def say(line: str) -> None:
        typer.echo(line, err=True)

    rows = train_variants(setup, _words(variant), seeds, usable_device(device), out, say)
    Console().print(train_table(rows))
    if json is not None:
        from tradeoff.core.files import write_json

        write_json(json, train_document(setup, rows))


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise typer.BadParameter(f"write one or more with commas between, not {text!r}")
    return words


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise typer.BadParameter(f"write whole numbers with commas between, as 1,2,4, not {text!r}") from None
