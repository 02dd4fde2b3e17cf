"""Panels show what a step did, and the step does not notice."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_mask2former import distilled_sample
from test_semi_student import batch, build_student, folder, losses_of  # noqa: F401  (a fixture)
from toy_models import build_detector

from pipeline.errors import ConfigError
from pipeline.models.image_panels import TILE, heat_in_view, in_view, marked, masks_on, sheet, tile_hw
from pipeline.models.mask2former import view_of
from pipeline.models.panel_hook import LABEL_PANEL, ROW_PANEL, PanelHook, Recorded, pixels


class Writer:
    def __init__(self):
        self.images = {}

    def add_image(self, tag, picture, step):
        self.images[tag] = (picture, step)


def runner_of(model, writer, step=0):
    visualizer = SimpleNamespace(get_backend=lambda name: writer if name == "TensorboardVisBackend" else None)
    return SimpleNamespace(model=model, visualizer=visualizer, iter=step)


def one_step(model, compute, *, interval):
    """Losses of a step with the hook around it, and what it drew."""
    hook, writer = PanelHook(interval=interval), Writer()
    runner = runner_of(model, writer)
    hook.before_train_iter(runner, 0)
    losses = compute()
    hook.after_train_iter(runner, 0)
    return losses, writer.images


def distilled_losses(model, *, seed=0):
    samples = [distilled_sample(image_id=i) for i in (1, 2)]
    inputs = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    return model.loss(inputs, samples)


@pytest.mark.parametrize("arp", [None, {"mode": "moved"}])
def test_a_students_losses_are_the_same_to_the_bit_with_panels_and_without(folder, arp):  # noqa: F811
    states, found = [], []
    for interval in (0, 1):
        model = build_student(arp=arp)
        losses, images = one_step(model, lambda model=model: losses_of(model, batch(folder)), interval=interval)
        sum(v.sum() for n, v in losses.items() if "loss" in n).backward()
        states.append([p.grad for p in model.student.parameters() if p.grad is not None] + [torch.get_rng_state()])
        found.append((losses, images))
    (plain, none), (drawn, images) = found
    assert none == {}
    assert set(images) == {LABEL_PANEL}
    assert plain.keys() == drawn.keys()
    assert all(torch.equal(plain[name], drawn[name]) for name in plain)
    assert len(states[0]) == len(states[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_teachers_losses_are_the_same_to_the_bit_with_panels_and_without():
    results = []
    for interval in (0, 1):
        model = build_detector()
        losses, images = one_step(model, lambda model=model: distilled_losses(model), interval=interval)
        results.append((losses, images, torch.get_rng_state(), np.random.get_state()[1].tolist()))
    (plain, none, *first), (drawn, images, *second) = results
    assert none == {}
    assert set(images) == {ROW_PANEL}
    assert "loss_structural" in drawn
    assert all(torch.equal(plain[name], drawn[name]) for name in plain)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_nothing_is_left_of_the_listening(folder):  # noqa: F811
    model = build_student()
    one_step(model, lambda: losses_of(model, batch(folder)), interval=1)
    for owner, names in ((model, ("teacher_queries", "refined_labels", "mixed_samples")), (model.student, ("loss",))):
        assert not any(name in vars(owner) for name in names)
    assert not model.student.panoptic_head.pixel_decoder._forward_hooks


def test_only_every_so_many_steps_are_drawn():
    model, hook, writer = build_detector(), PanelHook(interval=3), Writer()
    drawn = []
    for step in range(7):
        runner = runner_of(model, writer, step)
        hook.before_train_iter(runner, step)
        distilled_losses(model)
        hook.after_train_iter(runner, step)
        drawn += [step + 1] if writer.images.pop(ROW_PANEL, (None, None))[1] == step + 1 else []
    assert drawn == [3, 6]


def test_without_tensorboard_nothing_is_done():
    model, hook = build_detector(), PanelHook(interval=1)
    hook.before_train_iter(runner_of(model, None), 0)
    assert "loss" not in vars(model)
    hook.after_train_iter(runner_of(model, None), 0)


def test_what_was_recorded_is_what_the_teacher_the_refiner_and_arp_said(folder):  # noqa: F811
    model = build_student(arp={"mode": "static"})
    recorded = Recorded(model)
    losses_of(model, batch(folder))
    recorded.stop()
    (inputs, _), queries = recorded.calls["teacher_queries"]
    labels, _ = recorded.calls["refined_labels"][1]
    mixed = recorded.calls["mixed_samples"][1]
    for query, label, view in zip(queries, labels, mixed, strict=True):
        assert len(query.labels) >= len(label.labels) > 0
        assert view.image.shape == (64, 64, 3)
    images = batch(folder)["inputs"]["unsup"]
    for image, found in zip(images, pixels(inputs, model), strict=True):
        np.testing.assert_allclose(found, image.permute(1, 2, 0).numpy(), atol=1)


def test_a_panel_has_a_row_for_each_image_and_three_columns(folder):  # noqa: F811
    model = build_student()
    _, images = one_step(model, lambda: losses_of(model, batch(folder)), interval=1)
    picture, step = images[LABEL_PANEL]
    assert step == 1
    assert picture.shape == (2 * 68, 3 * 68, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("settings", [{"interval": -1}, {"interval": 2.5}, {"interval": True}, {"num_images": 0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="image panels"):
        PanelHook(**settings)


def test_a_mask_colours_its_pixels_and_no_others():
    image = np.full((40, 60, 3), 90, np.uint8)
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 10:20, 30:50] = True
    picture = masks_on(image, mask)
    assert ((picture != 90).any(axis=2) == mask[0]).all()
    assert (masks_on(image, mask[:0]) == 90).all()


def test_large_images_become_small_and_keep_their_shape():
    assert tile_hw((1024, 2048)) == (TILE // 2, TILE)
    assert tile_hw((30, 40)) == (30, 40)


def test_logits_become_masks_of_the_canvas():
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, :, 2:] = 1.0
    masks = in_view(logits, (16, 16))
    assert masks.shape == (1, 16, 16)
    assert masks[0, :, 8:].all()
    assert not masks[0, :, :8].any()
    assert in_view(logits[:0], (16, 16)).shape == (0, 16, 16)


def test_a_row_lies_in_the_view_where_its_cells_lie():
    """FLIP_CROP of the sample mirrors: the left of the canonical image is on the right of the view."""
    view = view_of(distilled_sample().metainfo)
    row = np.full((6, 7), -1, np.float32)
    row[:, :3] = 1
    picture = heat_in_view(row, view).astype(int)
    height, width = tile_hw(view.canvas_hw)
    assert picture.shape == (height, width, 3)
    red, blue = picture[20, 50], picture[20, 2]
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_the_cross_is_at_the_cell():
    view = view_of(distilled_sample().metainfo)
    picture = marked(np.zeros((64, 64, 3), np.uint8), 2 * 7 + 3, (6, 7), view)
    rows, columns = np.nonzero(picture.any(axis=2))
    x, y = (3.5 * 56 / 7, 2.5 * 40 / 6)
    assert abs(columns.mean() - (-1.5 * x + 70)) < 1
    assert abs(rows.mean() - (1.5 * y - 9)) < 1


def test_a_sheet_takes_pictures_of_any_sizes():
    first, second = np.zeros((10, 20, 3), np.uint8), np.zeros((30, 5, 3), np.uint8)
    out = sheet([[first, second], [second]])
    assert out.shape == (68, 48, 3)
    assert (out == 0).all(axis=2).sum() == 200 + 2 * 150
