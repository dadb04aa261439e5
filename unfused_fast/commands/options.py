"""How a command runs, from its flags: alone, or as one of several processes. Imports nothing heavy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from unfused_fast.errors import UserError
from unfused_fast.launch import place_of

if TYPE_CHECKING:
    from unfused_fast.training import Options


def refuse_several(alone: bool = True) -> None:
    """Raises UserError for the first of several processes of torchrun or srun, of a command that runs `alone`; the
    others end without a word.
    """
    place = place_of(os.environ) if alone else None
    if place is not None and place.rank:
        raise typer.Exit(1)
    if place is not None:
        raise UserError(
            f"this command runs as one process, but was started as one of {place.world_size}, which would all write "
            "the same files; start it once, without torchrun, or with srun --ntasks=1"
        )


def run_options(
    device: str,
    compile_: bool | None = None,
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    save_every: str | None = None,
    resume_anyway: bool = False,
    timeout: float | None = None,
    skip_bad: int = 0,
    compile_mode: str = "default",
) -> Options:
    """How a stage runs, from the flags; with a `timeout` together with the other processes, where there are some.

    Raises UserError for a device that is not there, or flags that exclude each other; and without a `timeout` for one
    of several processes, each of which would do all of the work and write the same files.
    """
    refuse_several(timeout is None)
    from unfused_fast.training import Options, join, parse_save_every, resolve_device

    if (resume or resume_anyway) and overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
    place = None if timeout is None else place_of(os.environ)
    chosen = resolve_device(device if place is None else place.device(device))
    return Options(
        chosen,
        compile_,
        compile_mode,
        resume=resume or resume_anyway,
        resume_anyway=resume_anyway,
        overwrite=overwrite,
        save_every=parse_save_every(save_every)[0],
        profile=profile,
        ranks=join(place, chosen, timeout or 0.0),
        skip_bad=skip_bad,
    )
