"""What a run is told of before it starts, and goes on with: it is no error, and may still not be meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_schemas.similarity import INSIDE_GROUND_TRUTH
from jobs.config_files import load_config
from jobs.training.run_directory import RESOLVED
from pipeline.data.coco import CocoSet
from pipeline.errors import PipelineError
from pipeline.masks import rle
from pipeline.stores.similarity_store import SimilarityStore

_LOOKED_AT = 16
"""Images whose stored points are compared with the annotations."""


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


def rate_that_never_falls(config: Any) -> str | None:
    """What to tell of a training that ends before its learning rate is to fall, None where it falls or is to stay."""
    schedule, steps = config.get("param_scheduler"), config.get("max_iters")
    late = [
        number
        for each in (schedule if isinstance(schedule, list | tuple) else [schedule])
        for number in (each or {}).get("milestones", ())
    ]
    if steps is None or not late or min(late) < steps:
        return None
    last = ", ".join(str(round(steps * number / max(late) * 0.96)) for number in late)
    return (
        f"note: the learning rate is to fall at the steps {', '.join(map(str, late))}, and max_iters={steps}: it never "
        f"does. Other steps: --cfg-options param_scheduler.milestones=[{last}]"
    )


def targets_of_others(store: str, taught: CocoSet) -> str | None:
    """What to tell of similarity targets that were made from other objects than those of the images that are taught.

    The store holds where points were drawn on objects: of these very objects, all of them lie on one. Where most do
    not, it is of other pictures, whatever their names and sizes, or of annotations that have little in common.

    Args:
        store: Of these images, by ids, names and sizes.
        taught: With the annotations of all classes: precompute-sam takes all.
    """
    targets = SimilarityStore.open(store)
    there = set(targets.image_ids())
    known = [image for image in taught.images if image.image_id in there and taught.annotations[image.image_id]]
    drawn = found = 0
    for image in known[:_LOOKED_AT]:
        xy, kind = targets.points(image.image_id)
        x, y = xy[kind == INSIDE_GROUND_TRUTH].astype(np.int64).T
        masks = [rle.decode(entry.rle) for entry in taught.annotations[image.image_id] if not entry.iscrowd]
        drawn += len(x)
        found += int(np.any([mask[y, x] for mask in masks], axis=0).sum()) if masks else 0
    if 2 * found >= drawn:
        return None
    return (
        f"note: of {drawn} points that {store} has on objects of the first {len(known[:_LOOKED_AT])} images, only "
        f"{found} lie on an annotated one: its similarity targets are of other pictures with the same ids, names and "
        "sizes, or of other annotations. If so, run precompute-sam on these images, and name its store"
    )


def _labelled(split_file: str) -> frozenset[int]:
    return frozenset(json.loads(Path(split_file).read_bytes())["labelled"])
