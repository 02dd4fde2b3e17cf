"""A set of images that grew: what another library has is copied, the rest is computed."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import precompute_sam
from jobs.precompute_sam import precompute
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings
from pipeline.errors import ConfigError, InputError, StoreDamagedError, StoreMismatchError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.stores.proposal_store import ProposalStore
from pipeline.stores.verify import verify
from tests.fakes import FakeSam
from tests.jobs.toys import fake_sam, store_files, write_coco

CHECKED = 3
"""The five images that are copied lie in three shards, and one of each is looked at again."""


class Counting(FakeSam):
    """Remembers how many images it was shown."""

    seen = 0

    def embed(self, images):
        type(self).seen += len(images)
        return super().embed(images)


@pytest.fixture
def counting():
    Counting.seen = 0
    return lambda _settings: Counting()


@pytest.fixture
def settings(tmp_path):
    """Of five images with ids 10 to 14."""
    return PrecomputeSettings(
        images=str(write_coco(tmp_path / "data", 5)),
        store=str(tmp_path / "old"),
        sam=SamSettings("fake"),
        targets=("proposals",),
        similarity=SimilaritySettings(num_inside=4, num_uniform=4, rows_per_chunk=4),
        proposals=GeneratorSettings(points_per_side=4),
        images_per_shard=2,
    )


@pytest.fixture
def grown(settings, tmp_path):
    """Nine images, the five among them under other ids and between the new ones."""
    precompute(settings, make_backend=fake_sam)
    path = write_coco(tmp_path / "grown", 9, labelled=6)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] = 100 - image["id"]
    for annotation in content["annotations"]:
        annotation["image_id"] = 100 - annotation["image_id"]
    path.write_text(json.dumps(content))
    return replace(settings, images=str(path), store=str(tmp_path / "new"), reuse=settings.store)


def test_only_new_images_are_computed_and_the_store_is_as_if_all_were(grown, tmp_path, counting, capsys):
    precompute(grown, make_backend=counting)
    assert Counting.seen == 4 + CHECKED
    out = capsys.readouterr().out
    assert f"new 5 shards of up to 2 images; 5 images are copied from {grown.reuse}" in out
    assert "proposals: 9 images" in out
    assert verify(grown.store) == []
    fresh = replace(grown, store=str(tmp_path / "fresh"), reuse=None)
    precompute(fresh, make_backend=fake_sam)
    assert store_files(Path(grown.store)) == store_files(Path(fresh.store))
    assert all(ProposalStore.open(grown.store).read(image_id) for image_id in range(82, 91))


def test_other_images_of_the_same_names_and_sizes_are_refused(grown):
    for file in Path(grown.images).parent.glob("*.png"):
        Image.fromarray(np.ascontiguousarray(np.asarray(Image.open(file))[::-1])).save(file)
    with pytest.raises(InputError, match="is not the one that the reused library has") as caught:
        precompute(grown, make_backend=fake_sam)
    assert caught.value.exit_code == 3
    assert "reuse=None" in str(caught.value)


def test_an_image_that_cannot_be_looked_at_again_is_copied(grown):
    for index in range(5):
        (Path(grown.images).parent / f"{index:02}.png").write_bytes(b"no image")
    precompute(replace(grown, max_broken_share=1), make_backend=fake_sam)
    assert ProposalStore.open(grown.store).image_ids() == list(range(82, 91))


def test_a_finished_store_goes_on_without_the_other(grown, counting, tmp_path):
    precompute(grown, make_backend=counting)
    precompute(replace(grown, reuse=None), make_backend=counting)
    assert Counting.seen == 4 + CHECKED


def test_a_dry_run_counts_what_is_copied_and_writes_nothing(grown, capsys):
    precompute(grown, make_backend=fake_sam, dry_run=True)
    assert f"9 images; 5 images are copied from {grown.reuse}" in capsys.readouterr().out
    assert not Path(grown.store).exists()


def test_an_image_of_another_size_and_one_that_was_set_aside_are_computed(settings, tmp_path, counting):
    (tmp_path / "data/00.png").write_bytes(b"no image")
    precompute(replace(settings, max_broken_share=1), make_backend=fake_sam)
    write_coco(tmp_path / "data", 5)  # mended
    content = json.loads(Path(settings.images).read_text())
    content["images"][4] |= {"height": 23}
    (tmp_path / "data/instances.json").write_text(json.dumps(content))
    again = replace(settings, store=str(tmp_path / "new"), reuse=settings.store, max_broken_share=1)
    precompute(again, make_backend=counting)
    store = ProposalStore.open(again.store)
    assert store.image_ids() == [10, 11, 12, 13]
    assert list(store.quarantined()) == [14]  # as the file has another size than the list says
    assert Counting.seen == 1 + 2


def test_workers_in_other_folders_find_the_other_library(grown, tmp_path, counting, monkeypatch):
    def elsewhere(make_stage, jobs, **_):
        monkeypatch.chdir("/")
        stage = make_stage()
        return [stage(job) for job in jobs]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precompute_sam, "run_sharded", elsewhere)
    monkeypatch.setattr(precompute_sam, "room_for_a_worker", lambda *_: nullcontext())
    precompute(replace(grown, reuse="old"), make_backend=counting, ray_address="a cluster")
    assert Counting.seen == 4 + CHECKED


def test_targets_are_computed_whatever_is_copied(grown, counting):
    precompute(replace(grown, targets=("similarity", "proposals")), make_backend=counting)
    assert Counting.seen == 6 + 4 + CHECKED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"proposals": GeneratorSettings(points_per_side=5)}, r"settings\.points_per_side"),
        ({"sam": SamSettings("fake", precision="bf16")}, r"settings\.precision"),
    ],
)
def test_a_library_of_other_settings_is_not_reused(grown, changes, words):
    with pytest.raises(StoreMismatchError, match=words):
        precompute(replace(grown, **changes), make_backend=fake_sam)
    assert not Path(grown.store).exists()


def test_a_library_of_another_sam_is_not_reused(grown):
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        precompute(grown, make_backend=lambda _: FakeSam(sha256="e" * 64))
    assert not Path(grown.store).exists()


def test_a_store_is_not_reused_for_itself(grown):
    with pytest.raises(ConfigError, match="cannot be reused for itself"):
        precompute(replace(grown, store=grown.reuse + "/"), make_backend=fake_sam)


def test_a_library_that_is_not_there_is_told(grown, tmp_path):
    with pytest.raises(InputError, match="no proposals are stored here"):
        precompute(replace(grown, reuse=str(tmp_path / "nowhere")), make_backend=fake_sam)


def test_damage_of_the_other_library_is_found_and_named(grown):
    for file in Path(grown.reuse, "proposals").iterdir():
        data = bytearray(file.read_bytes())
        data[20] ^= 1
        file.write_bytes(data)
    with pytest.raises(StoreDamagedError, match="are damaged") as caught:
        precompute(grown, make_backend=fake_sam)
    assert grown.reuse in str(caught.value)


def test_a_store_of_fewer_images_says_how_they_need_not_be_computed_twice(grown):
    with pytest.raises(StoreMismatchError) as caught:
        precompute(replace(grown, store=grown.reuse, reuse=None), make_backend=fake_sam)
    assert f"--cfg-options reuse={grown.reuse}" in str(caught.value)
    with pytest.raises(StoreMismatchError) as caught:
        precompute(
            replace(grown, store=grown.reuse, reuse=None, proposals=GeneratorSettings(points_per_side=5)),
            make_backend=fake_sam,
        )
    assert "reuse" not in str(caught.value)
