"""The benchmarks' configs of sentences against numbers of the released code."""

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

from jobs.training.runs import read_training_config
from tests.jobs import toy_networks as toys

UNLABELLED_BATCHES, EPOCHS = 3497, 40
STEPS = UNLABELLED_BATCHES * EPOCHS
"""An epoch goes once over the longer list."""


def factor_after(steps, *options):
    """What is left of the learning rate when a student of the benchmarks has made so many steps."""
    config = read_training_config(toys.CONFIGS / "student/refcoco_none.py", [f"max_iters={steps}", *options])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule = PARAM_SCHEDULERS.build(dict(config.param_scheduler), default_args={"optimizer": optimizer})
    optimizer.step()
    for _ in range(steps):
        schedule.step()
    return optimizer.param_groups[0]["lr"]


def test_the_learning_rate_ends_at_zero_and_as_released_where_that_is_asked_for():
    assert factor_after(STEPS) == pytest.approx(0, abs=1e-9)
    # Released: by the time that the schedule looks, both lists are as long as the longer one.
    released = factor_after(STEPS, f"param_scheduler.end={2 * STEPS}")
    assert released == pytest.approx(0.5**0.9, abs=1e-4)
    assert round(released, 4) == 0.5359


def test_the_switch_of_the_table_is_twice_the_steps_of_the_benchmarks():
    config = read_training_config(toys.CONFIGS / "student/refcoco_none.py", [])
    assert "`param_scheduler.end=280000`" in (toys.CONFIGS.parent / "docs/method.md").read_text()
    assert 2 * config.max_iters == 280_000
