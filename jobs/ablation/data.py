"""Scenes, labelled draws and SAM's artefacts for a study; what is there already is left as it is."""

import time

from jobs import precompute_sam
from jobs.ablation.plan import CONFIGS, Study
from jobs.progress import Progress
from pipeline.data.coco import load_coco
from pipeline.data.splits import draw_split, save_split
from pipeline.scenes.dataset import write_scenes
from pipeline.stores.lock import StoreBusyError

_WAIT_SECONDS = 2.0


def prepare(study: Study) -> None:
    """Write what the trainings of all seeds read.

    The scenes are those of the demo, the same for all seeds. Which of them are labelled is drawn anew for each seed:
    the deviation over seeds is then that of labels and of training, and cells of one seed see the same labels.

    Raises:
        PipelineError: something else is there, or see ``precompute-sam``.
    """
    size = study.size
    with Progress("scenes", size.num_train + size.num_val) as bar:
        scenes = write_scenes(
            study.scenes,
            num_train=size.num_train,
            num_val=size.num_val,
            seed=size.seed,
            progress=lambda done, _total: bar.advance(done - bar.done),
        )
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    of_sentences = study.table.paper == "semires"
    for seed in study.seeds:
        save_split(draw_split(coco, percent=size.percent, seed=seed), study.split(seed))
        options = {
            "images": scenes.annotations("train"),
            "image_root": scenes.image_root,
            # A library is of all scenes: no split decides what is in it.
            "split": None if of_sentences else study.split(seed),
            "store": study.store(seed),
            "targets": "[proposals]" if of_sentences else "[similarity]",
        }
        _fill([f"{name}={value}" for name, value in options.items()])


def _fill(cfg_options: list[str]) -> None:
    """Run ``precompute-sam``, after another table in the same folder where that is filling the store."""
    told = False
    while True:
        try:
            precompute_sam.run(CONFIGS / "sam/scenes.py", cfg_options=cfg_options)
        except StoreBusyError as error:
            if not told:
                print(f"waiting: another job is writing {error.where}", flush=True)
            told = True
            time.sleep(_WAIT_SECONDS)
        else:
            return
