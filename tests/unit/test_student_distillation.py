"""The student's stage distils SAM on labelled images where it is told to, and only there."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from toy_models import blocks, detector_config, preprocessor_config, sample_of

from pipeline.errors import ConfigError
from pipeline.models.semi_student import SemiStudent

SIZE = 64


def build(**settings):
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = SemiStudent(
        detector=detector_config(),
        data_preprocessor=preprocessor_config(branches=True),
        refiner={"name": "none"},
        settings=settings,
    )
    model.student.init_weights()
    model.teacher.load_state_dict(model.student.state_dict())
    return model.train()


def step(model, *, targets=(True, True), seed=0):
    """Losses of a step with two labelled and two unlabelled images."""
    samples = []
    for number in range(4):
        is_labelled = number < 2
        sample = sample_of(blocks(2 * is_labelled, (SIZE, SIZE), seed=number), [0, 2][: 2 * is_labelled])
        sample.set_metainfo({"img_id": number})
        if is_labelled and targets[number]:
            rows = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(number))
            sample.sam_targets = InstanceData(cells=torch.arange(5), rows=rows)
        samples.append(sample)
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    data = {
        "inputs": {"sup": list(images[:2]), "unsup": list(images[2:])},
        "data_samples": {"sup": samples[:2], "unsup": samples[2:]},
    }
    ready = model.data_preprocessor(data, True)
    torch.manual_seed(seed)
    return model.loss(ready["inputs"], ready["data_samples"])


def test_the_switch_adds_the_loss_of_the_labelled_images_and_nothing_else():
    off, on = step(build()), step(build(distil_labelled=True))
    assert set(on) - set(off) == {"sup/loss_structural"}
    assert float(on.pop("sup/loss_structural")) > 0.01
    for name, value in off.items():
        torch.testing.assert_close(on[name], value)


def test_the_loss_moves_the_student_and_not_the_teacher():
    model = build(distil_labelled=True)
    step(model)["sup/loss_structural"].backward()
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


@pytest.mark.parametrize("targets", [(False, False), (True, False)])
def test_labelled_images_without_targets_are_told(targets):
    with pytest.raises(ConfigError, match=r"nothing to distil[\s\S]*distil_labelled"):
        step(build(distil_labelled=True), targets=targets)
    step(build(), targets=targets)
