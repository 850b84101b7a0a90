"""Train heads for your own model, and write with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from .serving import Served

app = typer.Typer(help="Decode several tokens in a pass, by heads that guess ahead.", no_args_is_help=True)

Model = Annotated[
    str, typer.Option(help="smollm2, or a folder, GGUF file or hub name of a Llama-family checkpoint.")
]
Heads = Annotated[Path | None, typer.Option(help="Folder that `train` wrote; without it, plain decoding.")]
Tokens = Annotated[int, typer.Option(min=1, help="New tokens at most.")]
Rule = Literal["greedy", "typical", "sample", "rejection"]
Acceptance = Annotated[Rule, typer.Option(help="Which guesses are kept.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of all rules but greedy.")]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for heads and tree.")],
    model: Model = "smollm2",
    data: Annotated[
        Path | None, typer.Option(help="Prompts, one a line; without it, built-in chat, code and prose.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=8, help="How many of each built-in kind.")] = 200,
    new_tokens: Annotated[int, typer.Option(min=4, help="Of the model's own text behind each.")] = 96,
    heads: Annotated[int, typer.Option(min=1, help="Tokens that are guessed ahead.")] = 3,
    blocks: Annotated[int, typer.Option(min=1, help="Residual blocks of a head.")] = 1,
    own_matrices: Annotated[
        bool, typer.Option(help="Give each head an output matrix of its own; for large models.")
    ] = False,
    draft_vocab: Annotated[
        int, typer.Option(min=0, help="Tokens that can be guessed, the most frequent; 0 for all.")
    ] = 4096,
    stage: Annotated[int, typer.Option(min=1, max=2, help="2 trains adapters of the model, too.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the text.")] = 4,
    lr: Annotated[float, typer.Option(min=1e-9, help="Learning rate of the heads.")] = 1e-3,
    max_nodes: Annotated[int, typer.Option(min=1, help="Of the tree.")] = 32,
    export: Annotated[Path | None, typer.Option(help="Folder for the layout of another program.")] = None,
    layout: Annotated[Literal["vllm", "public"], typer.Option(help="Which layout.")] = "vllm",
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
) -> None:
    """Let a model write, train heads on what it wrote, and choose the fastest tree for this machine."""
    from .serving import train_for

    found = train_for(
        model,
        out,
        prompts=data,
        per_kind=prompts,
        new_tokens=new_tokens,
        num_heads=heads,
        num_blocks=blocks,
        share_lm_head=not own_matrices,
        draft_vocab=draft_vocab or None,
        stage=stage,
        epochs=epochs,
        learning_rate=lr,
        max_nodes=max_nodes,
        export=export,
        layout=layout,
        device=device,
        seed=seed,
        say=lambda line: typer.echo(line, err=True),
    )
    _print(found)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue, or what to answer with --chat-template.")],
    model: Model = "smollm2",
    heads: Heads = None,
    max_new_tokens: Tokens = 128,
    acceptance: Acceptance = "greedy",
    temperature: Temperature = 0.7,
    chat_template: Annotated[bool, typer.Option(help="Ask in the model's chat template.")] = False,
    compare: Annotated[bool, typer.Option(help="Also decode plainly, and say how much faster.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Continue a text, token by token as they come."""
    from .serving import serve

    served = serve(model, heads, acceptance, temperature, device)
    ids = served.encode(prompt, chat_template)
    count, steps, seconds = _write(served, ids, max_new_tokens, seed)
    typer.echo(
        f"{count} tokens in {steps} passes and {seconds:.2f} s, {count / seconds:.1f} a second", err=True
    )
    if compare:
        plain = serve(model, None, acceptance, temperature, device, backbone=served.backbone)
        out = plain.decode(ids, max_new_tokens, seed)
        typer.echo(f"plainly {out.seconds:.2f} s, {len(out.ids) / out.seconds:.1f} a second", err=True)


@app.command()
def chat(
    model: Model = "smollm2",
    heads: Heads = None,
    max_new_tokens: Tokens = 256,
    acceptance: Acceptance = "greedy",
    temperature: Temperature = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Talk to a model; an empty line or the end of input ends it."""
    from .serving import serve

    served = serve(model, heads, acceptance, temperature, device)
    turns: list[dict[str, str]] = []
    while True:
        try:
            said = input("> ")
        except EOFError:
            break
        if not said.strip():
            break
        turns.append({"role": "user", "content": said})
        text: list[str] = []
        _write(served, served.encode_turns(turns), max_new_tokens, seed, text)
        turns.append({"role": "assistant", "content": "".join(text)})


def _write(
    served: "Served", ids: list[int], count: int, seed: int, kept: list[str] | None = None
) -> tuple[int, int, float]:
    """Print a text as it comes; tokens, passes and seconds."""
    import time

    started, tokens, steps = time.perf_counter(), 0, 0
    for new, text in served.stream(ids, count, seed):
        tokens, steps = tokens + new, steps + bool(new)
        typer.echo(text, nl=False)
        if kept is not None:
            kept.append(text)
    typer.echo()
    return tokens, steps, time.perf_counter() - started


def _print(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="predicted on held-out text, by the measured cost of a pass")
    for heading in ("guesses", "tokens per step", "cost of a step", "speed-up"):
        table.add_column(heading, justify="right")
    rows = list(zip(found.tokens_per_step, found.cost, found.speedup, strict=True))
    chosen = len(found.paths)
    for nodes in sorted({0, 1, 2, 4, 5, 8, 12, 16, 24, 32, chosen} & set(range(len(rows)))):
        mark = " *" if nodes == chosen else ""
        table.add_row(f"{nodes}{mark}", *(f"{value:.2f}" for value in rows[nodes]))
    Console().print(table)
    if not chosen:
        typer.echo("no tree is predicted to be faster here: decoding will be plain", err=True)
