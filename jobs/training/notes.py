"""Did the teacher of a student learn the same labelled images? A note where it did not."""

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


def _labelled(split_file: str) -> frozenset[int]:
    return frozenset(json.loads(Path(split_file).read_bytes())["labelled"])
