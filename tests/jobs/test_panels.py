"""A whole training with panels is the training without them, and leaves them where TensorBoard looks."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.models.panel_hook import LABEL_PANEL
from tests.jobs.test_training import (  # noqa: F401  (fixtures)
    STUDENT,
    content,
    run_training,
    same,
    scenes,
    small_student,
    teacher_run,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def logged(folder):
    """Everything that was logged of each step, less how long it took."""
    lines = [json.loads(line) for line in next(folder.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


@pytest.mark.slow
def test_panels_change_nothing_that_is_learnt(scenes, teacher_run, tmp_path):  # noqa: F811
    runs = {}
    for interval in (0, 2):
        options = small_student(scenes, teacher_run, panel_interval=interval)
        runs[interval] = run_training(STUDENT, options, tmp_path / f"panels_{interval}")
    same(content(runs[2]), content(runs[0]))
    assert logged(runs[2]) == logged(runs[0])
    assert len(logged(runs[0])) >= 4
    assert [image.step for image in images(runs[2])] == [2, 4]
    with pytest.raises(KeyError):
        images(runs[0])


def images(folder):
    events = EventAccumulator(str(next(folder.glob("*/vis_data/events*"))), size_guidance={"images": 0})
    events.Reload()
    return events.Images(LABEL_PANEL)


@pytest.mark.slow
def test_a_watch_set_changes_nothing_that_is_learnt_and_shows_the_same_views(scenes, teacher_run, tmp_path):  # noqa: F811
    runs = {}
    for interval in (0, 2):
        options = small_student(scenes, teacher_run, watch_interval=interval, at_burn_in_end="keep", ema_decay=0.999999)
        runs[interval] = run_training(STUDENT, options, tmp_path / f"watch_{interval}")
    same(content(runs[2]), content(runs[0]))
    watched = [line for line in logged(runs[2]) if any(name.startswith("watch/") for name in line)]
    by_step = {step: {n: v for line in watched if line["step"] == step for n, v in line.items()} for step in (2, 4)}
    assert {"watch/pseudo/per_image", "watch/quality/teacher_sq", "watch/quality/refined_ca"} <= set(by_step[2])
    # A teacher that hardly moves says the same of the same views.
    for name in by_step[2].keys() - {"step"}:
        assert by_step[4][name] == pytest.approx(by_step[2][name], abs=1e-3)
    assert not any(name.startswith("watch/") for line in logged(runs[0]) for name in line)
    assert "watch 2  " in (runs[2] / "progress.log").read_text()
