"""A program on disk: ``program.safetensors`` for the server, ``public/plan.json`` for its clients."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
from safetensors.numpy import save_file

from tradeoff.core.errors import DataError
from tradeoff.core.files import read_json, write_json
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.ckks.program import Program

PROGRAM, PUBLIC, PLAN = "program.safetensors", "public", "plan.json"
FORMAT = "tradeoff-ckks-1"


def save_program(folder: Path | str, program: Program, plan: Plan) -> None:
    """Write a program and its plan. ``folder/public`` is for clients; the rest holds the weights."""
    folder = Path(folder)
    (folder / PUBLIC).mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "structure": json.dumps(program.structure())}
    save_file({"vectors": program.matrix()}, folder / PROGRAM, metadata=metadata)
    write_json(folder / PUBLIC / PLAN, plan.to_json())


def load_program(folder: Path | str) -> tuple[Program, Plan]:
    """What :func:`save_program` wrote.

    Raises:
        DataError: it is not there, or is none. InsecureParameters: the table forbids the plan's parameters.
    """
    path = Path(folder) / PROGRAM
    if not path.is_file():
        raise DataError(f"{folder} holds no program: make one with `tradeoff ckks compile`")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f"{path} is no program of format {FORMAT}")
            structure, matrix = json.loads(metadata["structure"]), file.get_tensor("vectors")
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no program: {error}") from None
    program, plan = Program.rebuild(structure, matrix), load_plan(Path(folder) / PUBLIC)
    if plan.program != program.digest:
        raise DataError(f"{folder}: the plan was made for another program")
    return program, plan


def load_plan(folder: Path | str) -> Plan:
    """The plan of a folder that :func:`save_program` wrote (its subfolder ``public``).

    Raises:
        DataError: it is not there, or is none. InsecureParameters: the table forbids its parameters.
    """
    path = Path(folder) / PLAN
    if not path.is_file():
        raise DataError(f"{folder} holds no plan: clients need the folder `public` of a program")
    return Plan.from_json(read_json(path))
