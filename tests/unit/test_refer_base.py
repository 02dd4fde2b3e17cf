"""What the starts of the referring networks learn from, and that a training that was stopped goes on unchanged."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_refer import build_segmentor, lavt_config

from pipeline.errors import CheckpointError
from pipeline.models.referring.base_scenes import (
    COLOUR_NAMES,
    FAMILY_NAMES,
    ReferScenes,
    draw_group,
    draw_one,
    draw_refer_batch,
    seat_class_words,
    turned,
)
from pipeline.models.referring.base_training import (
    ReferBaseSettings,
    ReferBaseTrainer,
    ReferStage,
    dice_loss,
    held_out_iou,
)
from pipeline.models.referring.text_encoder import TextEncoder
from pipeline.scenes.expressions import SceneObject, candidates
from pipeline.scenes.render import SceneStyle
from pipeline.scenes.shapes import BENCHMARK_FAMILIES

SIZE = 64


@pytest.fixture(scope="module")
def scenes():
    drawn = [draw_one(index, style=SceneStyle(size=SIZE), seed=7) for index in range(6)]
    images, owners, objects = zip(*drawn, strict=True)
    return ReferScenes(np.stack(images), np.stack(owners), list(objects))


def objects_in(owner, names):
    """Where the objects of an owner map [H, W] lie."""
    found = []
    for number, (family, colour) in enumerate(names, start=1):
        rows, columns = np.nonzero(owner == number)
        height, width = owner.shape
        x, y = (columns + 0.5).mean() / width, (rows + 0.5).mean() / height
        found.append(SceneObject(family, colour, float(x), float(y), len(rows)))
    return found


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_objects_turn_with_their_pixels(scenes, turns, mirrored):
    owner = np.rot90(scenes.owners[0], turns)
    owner = owner[:, ::-1] if mirrored else owner
    expected = objects_in(owner, [(thing.family, thing.colour) for thing in scenes.objects[0]])
    for before, after in zip(scenes.objects[0], expected, strict=True):
        found = turned(before, turns, mirrored)
        assert (found.family, found.colour, found.area) == (after.family, after.colour, after.area)
        assert (found.x, found.y) == pytest.approx((after.x, after.y))


def test_every_sentence_is_true_of_what_its_image_shows(scenes):
    batch = draw_refer_batch(scenes, np.random.default_rng(1), 16)
    assert batch.images.shape == (16, 3, SIZE, SIZE)
    for index, sentence in enumerate(batch.sentences):
        owner = batch.owners[index].numpy()
        count = int(owner.max())
        names = [
            (FAMILY_NAMES[int(f)], COLOUR_NAMES[int(c)])
            for f, c in zip(batch.families[index][:count], batch.colours[index][:count], strict=True)
        ]
        meant = {c.target for c in candidates(objects_in(owner, names)) if c.sentence == sentence}
        assert len(meant) == 1
        assert torch.equal(batch.masks[index], batch.owners[index] == meant.pop() + 1)


def test_a_group_is_everything_that_its_words_name():
    def thing(colour, family):
        return SceneObject(family, colour, 0.5, 0.5, 100)

    objects = [thing("red", "gear"), thing("red", "arrow"), thing("blue", "gear"), thing("red", "gear")]
    groups = {
        sentence: members for members, sentence in (draw_group(objects, np.random.default_rng(i)) for i in range(99))
    }
    assert groups == {
        "the gear": [0, 2, 3],
        "the arrow": [1],
        "the red shape": [0, 1, 3],
        "the blue shape": [2],
        "the red gear": [0, 3],
        "the red arrow": [1],
        "the blue gear": [2],
    }


def test_groups_are_masks_of_all_their_objects(scenes):
    batch = draw_refer_batch(scenes, np.random.default_rng(2), 16, group_share=1.0)
    for index, sentence in enumerate(batch.sentences):
        words, owner = set(sentence.split()), batch.owners[index]
        count = int(owner.max())
        meant = [
            number + 1
            for number in range(count)
            if {FAMILY_NAMES[int(batch.families[index, number])], "shape"} & words
            and ({COLOUR_NAMES[int(batch.colours[index, number])]} & words or not words & set(COLOUR_NAMES))
        ]
        assert torch.equal(batch.masks[index], torch.isin(owner, torch.tensor(meant)))


def test_two_sentences_speak_of_each_view(scenes):
    batch = draw_refer_batch(scenes, np.random.default_rng(2), 7)
    assert len(batch.images) == 7
    assert all(torch.equal(batch.images[i], batch.images[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(batch.images[1], batch.images[2])
    assert any(not torch.equal(batch.masks[i], batch.masks[i + 1]) for i in (0, 2, 4))


def test_class_words_of_the_benchmark_never_occur(scenes):
    rng = np.random.default_rng(0)
    words = {word for _ in range(20) for s in draw_refer_batch(scenes, rng, 16).sentences for word in s.split()}
    assert words & set(FAMILY_NAMES)
    assert not words & set(BENCHMARK_FAMILIES)


def test_draws_are_functions_of_their_generator(scenes):
    first, second = (draw_refer_batch(scenes, np.random.default_rng(3), 4) for _ in range(2))
    assert first.sentences == second.sentences
    assert torch.equal(first.images, second.images)


def test_new_class_words_move_to_the_mean_of_the_known_ones():
    encoder = TextEncoder("tiny-bert")
    words = encoder.bert.embeddings.word_embeddings.weight.detach()
    index = {word: encoder.tokenizer.convert_tokens_to_ids(word) for word in ("gear", "arrow", "star", "box", "red")}
    before = words.clone()
    seat_class_words(encoder, ["gear", "arrow"], ["star", "box"])
    mean = (before[index["gear"]] + before[index["arrow"]]) / 2
    for word in ("star", "box"):
        torch.testing.assert_close(words[index[word]], before[index[word]] + mean)
    for word in ("gear", "arrow", "red"):
        assert torch.equal(words[index[word]], before[index[word]])


def test_dice_loss_is_zero_for_the_mask_itself_and_its_formula_else():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    sure = torch.stack([~mask, mask], dim=1).float() * 50
    assert dice_loss(sure, mask) == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.zeros(1, 2, 4, 4), mask) == pytest.approx(1 - (2 * 4 + 1) / (8 + 8 + 1))


def test_figures_of_a_model_that_says_object_everywhere(scenes):
    everything = torch.stack([torch.zeros(1, SIZE, SIZE), torch.ones(1, SIZE, SIZE)], dim=1)
    model = SimpleNamespace(
        data_preprocessor=SimpleNamespace(mean=0.0, std=1.0),
        network=lambda images, sentences: None,
        upsampled=lambda output, images: everything,
    )
    draws = [draw_refer_batch(scenes, np.random.default_rng([5, index]), 1) for index in range(18)]
    share = torch.cat([draw.masks for draw in draws]).double().mean()
    figures = held_out_iou(model, scenes, seed=5)
    assert figures["oiou"] == figures["miou"] == pytest.approx(float(share))
    assert figures["above_half"] == 0


def trainer(scenes, *, seed=1):
    """Three steps of two images, then one step of one."""
    torch.manual_seed(0)
    stages = [ReferStage(scenes, 3, 2), ReferStage(scenes, 1, 1)]
    return ReferBaseTrainer(build_segmentor(lavt_config()), stages, ReferBaseSettings(rate=1e-3, seed=seed))


def run(made, *, until=None):
    """Train, or stop as a killed process does after that many reports."""
    seen, saved = [], []

    def report(step, averages):
        seen.append((step, averages))

    def save():
        saved.append(made.state())
        if len(saved) == until:
            raise KeyboardInterrupt

    try:
        made.train(report=report, save=save, every=2)
    except KeyboardInterrupt:
        assert until is not None
    return seen


def test_a_resumed_training_is_the_uninterrupted_one(scenes, tmp_path):
    whole, stopped = trainer(scenes), trainer(scenes)
    expected = run(whole)
    first = run(stopped, until=1)
    torch.save(stopped.state(), tmp_path / "state.pt")
    resumed = trainer(scenes)
    resumed.resume(torch.load(tmp_path / "state.pt", weights_only=True), where=tmp_path / "state.pt")
    assert resumed.step == 2
    second = run(resumed)
    assert first + second == expected
    assert [step for step, _ in expected] == [2, 4]
    for name, value in whole.averaged.items():
        assert torch.equal(value, resumed.averaged[name]), name
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_stages_follow_each_other(scenes):
    made, images = trainer(scenes), []
    for step in range(made.num_steps):
        made.step = step
        images.append(made.stage.images)
    assert images == [2, 2, 2, 1]


def test_losses_reported_are_the_parts_of_the_whole(scenes):
    (_, averages), *_ = run(trainer(scenes), until=1)
    assert set(averages) == {"loss", "mask", "dice", "naming"}
    assert averages["loss"] == pytest.approx(sum(averages.values()) - averages["loss"])


def test_every_parameter_learns_and_the_average_follows(scenes):
    made = trainer(scenes)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    run(made)
    words = "network.text_encoder.bert.embeddings.word_embeddings.weight"
    still = [name for name, p in made.model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert not torch.equal(made.averaged[words], before[words])
    assert made.averaged["network.decoder.levels.0.0.bn.num_batches_tracked"] == 4


def test_a_training_with_other_settings_is_not_resumed(scenes, tmp_path):
    state = trainer(scenes).state()
    with pytest.raises(CheckpointError, match="other settings"):
        trainer(scenes, seed=2).resume(state, where=tmp_path)
