"""What a run is told of before it starts, and goes on with: it is no error, and may still not be meant."""

import json
from pathlib import Path
from typing import Any

from jobs.config_files import load_config
from jobs.training.runs import RESOLVED
from pipeline.errors import PipelineError


def other_labels(config: Any) -> str | None:
    """What to tell of a student whose teacher learnt other labelled images, None where it did not or nobody knows.

    Known is what the teacher's run directory says: the split file of its resolved configuration.
    """
    start, mine = config.get("teacher_checkpoint"), config.get("split_file")
    if not start or not mine:
        return None
    folder = Path(start) if Path(start).is_dir() else Path(start).parent
    try:
        theirs = load_config(folder / RESOLVED).get("split_file")
        learnt, labelled = _labelled(theirs), _labelled(mine)
    except (PipelineError, OSError, ValueError, KeyError, TypeError):
        return None  # a published checkpoint, or a split that has gone: checked where it is needed
    if learnt == labelled:
        return None
    unseen = len(learnt - labelled)
    return (
        f"note: the teacher learnt {len(learnt)} labelled images ({theirs}), "
        f"this student has {len(labelled)} ({mine}); {unseen} of the teacher's are not among them. "
        "A teacher of the same share is named by --cfg-options teacher_checkpoint=DIR"
    )


def teacher_that_never_moves(config: Any) -> str | None:
    """What to tell of a student whose burn-in outlasts its training; None where it does not."""
    burn_in, steps = config.get("burn_in"), config.get("max_iters")
    if burn_in is None or steps is None or burn_in < steps:
        return None
    return (
        f"note: burn_in={burn_in} is not before the last step, max_iters={steps}: the teacher never moves. "
        f"A shorter one is set by --cfg-options burn_in={steps // 2}"
    )


def _labelled(split_file: str) -> frozenset[int]:
    return frozenset(json.loads(Path(split_file).read_bytes())["labelled"])
