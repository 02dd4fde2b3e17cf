"""The options that several commands share, as annotated types; nothing heavy is imported here."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("s4m-pipeline"))
        raise typer.Exit


def _refuse_no_share(percent: float | None) -> float | None:
    # A range of typer's would hold 0, and NaN is in every range.
    if percent is not None and not 0 < percent <= 100:
        raise typer.BadParameter(f"{percent:g} is not above 0 and at most 100.")
    return percent


def _measured() -> str:
    """What estimates there are, as ``jobs/precompute/cost_model.py`` says it, which is too heavy for a help text."""
    try:
        rows = json.loads((Path(__file__).parent / "precompute" / "stage_times.json").read_bytes())
        return ", ".join(f"{row['sam']} on {row['device']} in {row['precision']}" for row in rows)
    except (OSError, ValueError, TypeError, KeyError):
        return "nothing that can be read"


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")]

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="An mmengine configuration in pure Python, for example of configs/.")
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The weights to use.")]
Network = Annotated[
    Literal["student", "teacher"],
    typer.Option(help="Which network of a student's checkpoint; of no matter where there is only one."),
]
ValidatedNetwork = Annotated[
    Literal["student", "teacher"] | None,
    typer.Option(help="Which network of a student's checkpoint [default: that which its training validates]."),
]
CfgOptions = Annotated[
    list[str],
    typer.Option(
        default_factory=list,
        show_default=False,
        help="Override a key of the configuration, mmengine's grammar: key=value, a.b=1, a='[1,2]'; once for each key.",
    ),
]
WorkDir = Annotated[Path | None, typer.Option(help="Where to write; without it the configuration decides.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier run wrote, and start again.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it takes; write nothing.")]
Gpu = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With --dry-run, which needs neither GPU nor checkpoint: estimate for this kind of GPU, its name or a "
        f"part of it. Measured so far: {_measured()}.",
    ),
]
LabelledPercent = Annotated[
    float | None,
    typer.Option(
        callback=_refuse_no_share,
        help="Of the scenes that are labelled, above 0, at most 100 [default: 10; SemiRES 1; 34 if tiny].",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only N images, for a trial.")]
Workers = Annotated[
    int,
    typer.Option(
        min=1, help="Worker processes, through Ray Train; a single one without --ray-address trains in this process."
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(help="'local': in this process; 'start': a Ray of its own here; 'auto' or HOST:PORT: that cluster."),
]
