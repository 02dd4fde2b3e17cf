"""``s4m-pipeline train-teacher``: Mask2Former on the labelled images, with SAM's structure as a second signal."""

from functools import partial

from jobs.training.launch import launch

run = partial(launch, stage="teacher")
