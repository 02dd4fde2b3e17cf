"""``s4m-pipeline train-student``: learns the teacher's masks, refined by SAM or by its stored proposals."""

from functools import partial

from jobs.training.launch import launch

run = partial(launch, stage="student")
