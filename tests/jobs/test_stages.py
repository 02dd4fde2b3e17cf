"""Stages: every image of a shard ends as rows or with a reason, and results are the functions' own."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.similarity import SimilarityLayout, dequantise, quantise
from jobs.precompute import stages
from jobs.precompute.stages import ProposalStage, ShardJob, SimilarityStage
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings
from pipeline.errors import EnvironmentProblemError
from pipeline.images import read_image
from pipeline.masks import rle
from pipeline.sam.decoder_features import sample_target_points, similarity_targets
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.segment_everything import segment_everything
from pipeline.stores.proposal_store import ProposalStore
from pipeline.stores.similarity_store import SimilarityStore
from pipeline.stores.writer import StoreWriter
from tests.fakes import FakeSam
from tests.jobs.toys import write_images

KEYS = tuple(ImageKey(10 + i, f"{i:02}.png", 24, 32) for i in range(4))


@pytest.fixture
def settings(tmp_path):
    return PrecomputeSettings(
        images=str(tmp_path / "images"),
        store=str(tmp_path / "store"),
        sam=SamSettings("fake"),
        similarity=SimilaritySettings(num_inside=4, num_uniform=4, rows_per_chunk=4, seed=3),
        proposals=GeneratorSettings(points_per_side=4),
        retries=2,
    )


@pytest.fixture
def make_job(tmp_path, settings):
    """A job over four images, for a kind, and the writer that is to stay open meanwhile."""
    write_images(tmp_path / "images", 4)
    writers = []

    def make(kind: str, **changes: object) -> ShardJob:
        identity = StoreIdentity(kind, SCHEMA_VERSIONS[kind], "d" * 64, "fake", "f" * 64)
        layout = SimilarityLayout(8, (8, 8), 4) if kind == "similarity" else None
        writers.append(StoreWriter.create_or_open(settings.store, identity, KEYS, images_per_shard=4, layout=layout))
        return ShardJob(writers[-1].missing().tasks[0], str(tmp_path / "images"), **changes)

    yield make
    for writer in writers:
        writer.close()


def test_proposals_are_those_of_segment_everything(settings, make_job):
    told = []
    report = ProposalStage(settings, lambda _: FakeSam())(make_job("proposals"), told.append)
    assert told == [10, 11, 12, 13, None]
    assert [(o.image_id, o.status) for o in report.outcomes] == [(10 + i, "ok") for i in range(4)]
    store, sam = ProposalStore.open(settings.store), FakeSam()
    for key in KEYS:
        image = read_image(f"{settings.images}/{key.file_name}")
        expected = segment_everything(sam, image, settings.proposals)
        stored = store.read(key.image_id)
        assert [(p.rle_counts, p.area) for p in stored] == [(p.rle_counts, p.area) for p in expected]
        assert len(stored) >= 2  # both rectangles, at least


def test_similarity_is_that_of_the_decoder_at_points_in_the_objects(settings, make_job):
    box = np.zeros((24, 32), bool)
    box[4:12, 4:12] = True
    job = make_job("similarity", objects={11: (rle.encode(box),)})
    SimilarityStage(settings, lambda _: FakeSam())(job)
    store, sam = SimilarityStore.open(settings.store), FakeSam()
    targets = store.read(11)
    image = read_image(f"{settings.images}/01.png")
    points, kinds = sample_target_points(box, (24, 32), num_inside=4, num_uniform=4, rng=np.random.default_rng([3, 11]))
    np.testing.assert_array_equal(targets.points_xy, points)
    np.testing.assert_array_equal(targets.point_kind, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(kinds, targets.point_kind)
    assert all(box[int(y), int(x)] for x, y in points[:4])
    expected = similarity_targets(sam, sam.embed([image])[0], points, kinds).similarity
    np.testing.assert_array_equal(targets.similarity, dequantise(quantise(expected)))
    # An image without objects has uniform points only.
    np.testing.assert_array_equal(store.read(10).point_kind, [1] * 8)


def test_broken_images_are_set_aside_with_their_reason_and_the_others_are_done(settings, make_job, tmp_path):
    job = make_job("proposals", poisoned={13: "its worker died (SIGSEGV)"})
    (tmp_path / "images/00.png").unlink()
    whole = (tmp_path / "images/01.png").read_bytes()
    (tmp_path / "images/01.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((32, 24, 3), np.uint8)).save(tmp_path / "images/02.png")
    report = ProposalStage(settings, lambda _: FakeSam())(job)
    found = {o.image_id: (o.status, o.stage, o.reason) for o in report.outcomes}
    assert {o[:2] for o in found.values()} == {("quarantined", "read"), ("quarantined", "worker")}
    assert "not found" in found[10][2] or "missing" in found[10][2] or "No such" in found[10][2]
    assert found[12][2] == "size differs: planned 24 x 32, file 32 x 24 (height x width)"
    assert found[13] == ("quarantined", "worker", "its worker died (SIGSEGV)")
    assert ProposalStore.open(settings.store).image_ids() == []


def test_the_next_images_are_decoded_while_one_is_computed(settings, make_job, monkeypatch):
    """The first image is not computed before the third was read, which no other thread could do for it."""
    third_is_read = threading.Event()
    read = stages.read_image

    def watched(path):
        image = read(path)
        if path.name == "02.png":
            third_is_read.set()
        return image

    class Patient(FakeSam):
        def embed(self, images):
            assert third_is_read.wait(30)
            return super().embed(images)

    monkeypatch.setattr(stages, "read_image", watched)
    report = ProposalStage(settings, lambda _: Patient())(make_job("proposals"))
    assert [o.status for o in report.outcomes] == ["ok"] * 4


def test_one_at_a_time_reads_no_image_before_its_turn(settings, make_job, monkeypatch):
    order = []
    read = stages.read_image
    monkeypatch.setattr(stages, "read_image", lambda path: order.append(path.name) or read(path))
    job = make_job("proposals").one_at_a_time()
    ProposalStage(settings, lambda _: FakeSam())(job, order.append)
    assert order == [10, "00.png", 11, "01.png", 12, "02.png", 13, "03.png", None]
    assert job.one_at_a_time() is None


class Moody(FakeSam):
    """Fails at some encoder calls, counted from 1."""

    def __init__(self, failures, error):
        super().__init__()
        self.failures, self.error, self.calls = failures, error, 0

    def embed(self, images):
        self.calls += 1
        if self.calls in self.failures:
            raise self.error
        return super().embed(images)


def test_a_passing_failure_is_tried_again_and_counted(settings, make_job):
    sam = Moody({2, 3}, RuntimeError("out of memory\nmany lines"))
    report = ProposalStage(settings, lambda _: sam)(make_job("proposals"))
    assert [(o.status, o.retries) for o in report.outcomes] == [("ok", 0), ("ok", 2), ("ok", 0), ("ok", 0)]


def test_a_lasting_failure_is_set_aside_after_the_set_tries(settings, make_job):
    sam = Moody({2, 3, 4}, RuntimeError("out of memory\nmany lines"))
    report = ProposalStage(settings, lambda _: sam)(make_job("proposals"))
    outcome = report.outcomes[1]
    assert (outcome.stage, outcome.reason, outcome.retries) == ("sam", "RuntimeError: out of memory", 2)
    assert [o.status for o in report.outcomes] == ["ok", "quarantined", "ok", "ok"]
    assert sam.calls == 1 + 3 + 2


def test_a_fault_of_the_machine_is_nobodys_image(settings, make_job):
    sam = Moody({2}, EnvironmentProblemError("the GPU fell off"))
    with pytest.raises(EnvironmentProblemError, match="fell off"):
        ProposalStage(settings, lambda _: sam)(make_job("proposals"))


class Accelerated(RuntimeError):
    """Stands for torch's own class, which this test makes by name."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
        Accelerated("whatever it says"),
    ],
)
@pytest.mark.parametrize("together", [1, 3])
def test_a_device_that_failed_ends_the_run_and_nothing_is_recorded(settings, make_job, monkeypatch, error, together):
    monkeypatch.setattr(torch, "AcceleratorError", Accelerated, raising=False)
    sam = Moody({2}, error)
    with pytest.raises(EnvironmentProblemError, match="the device failed") as caught:
        ProposalStage(replace(settings, images_per_batch=together), lambda _: sam)(make_job("proposals"))
    assert str(error).splitlines()[0] in caught.value.got
    assert sam.calls == 2  # not tried again
    assert not list(Path(settings.store, "records").glob("*"))


def test_a_lack_of_memory_is_the_images(settings, make_job):
    sam = Moody({2, 3, 4}, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. See CUDA error"))
    report = ProposalStage(settings, lambda _: sam)(make_job("proposals"))
    assert [o.status for o in report.outcomes] == ["ok", "quarantined", "ok", "ok"]


class Failing(Moody):
    """Each failure has a text of its own, made of the number of the call."""

    def __init__(self, failures, text):
        super().__init__(failures, None)
        self.text = text

    def embed(self, images):
        self.error = RuntimeError(self.text(self.calls + 1))
        return super().embed(images)


def test_many_images_in_a_row_that_fail_alike_end_the_run(settings, make_job):
    """Also where they are of several shards; a read error between them says nothing of the machine."""
    sam = Failing(range(2, 99), lambda call: f"no kernel, {call}.5 GiB")
    stage = ProposalStage(replace(settings, retries=0, max_alike_failures=5), lambda _: sam)
    job = make_job("proposals")
    report = stage(job)
    assert [o.status for o in report.outcomes] == ["ok", "quarantined", "quarantined", "quarantined"]
    Path(settings.images, "00.png").unlink()
    with pytest.raises(EnvironmentProblemError, match="5 images one after the other") as caught:
        stage(job)
    assert "no kernel" in caught.value.got
    assert "max_alike_failures" in caught.value.fix


@pytest.mark.parametrize(
    ("failing", "reason"),
    [({1, 2, 3, 5, 6, 7}, lambda _: "alike"), (range(1, 9), lambda call: f"the {'abcdefgh'[call - 1]}")],
    ids=["one that is done between them", "other reasons"],
)
def test_failures_that_are_not_in_a_row_or_not_alike_end_nothing(settings, make_job, failing, reason):
    sam = Failing(failing, reason)
    stage = ProposalStage(replace(settings, retries=0, max_alike_failures=4), lambda _: sam)
    job = make_job("proposals")
    reports = [stage(job), stage(job)]
    assert sum(o.status == "quarantined" for report in reports for o in report.outcomes) == len(failing)


def test_an_image_with_more_proposals_than_a_library_holds_is_set_aside_alone(settings, make_job, monkeypatch):
    for name in ("00.png", "02.png"):
        Image.fromarray(np.full((24, 32, 3), 7, np.uint8)).save(f"{settings.images}/{name}")
    monkeypatch.setattr(stages, "MAX_ROWS", 1)
    report = ProposalStage(settings, lambda _: FakeSam())(make_job("proposals"))
    assert [o.status for o in report.outcomes] == ["ok", "quarantined", "ok", "quarantined"]
    bad = report.outcomes[1]
    assert (bad.stage, bad.reason.split(";")[0]) == ("sam", "more proposals than a library holds")


def test_targets_keep_from_image_to_image_how_many_points_fit(settings, make_job):
    class Crowded(FakeSam):
        def decoder_tokens(self, embedding, points_xy):
            tried.append(len(points_xy))
            if len(points_xy) > 4:
                raise torch.OutOfMemoryError("no room")
            return super().decoder_tokens(embedding, points_xy)

    tried = []
    settings = replace(settings, similarity=replace(settings.similarity, prompts_per_batch=8))
    report = SimilarityStage(settings, lambda _: Crowded())(make_job("similarity"))
    assert [o.status for o in report.outcomes] == ["ok"] * 4
    assert tried == [8, *[4] * 8]


def test_images_embedded_together_give_what_they_give_alone(settings, make_job):
    """Groups of three: the encoder is called for 3 images, then for the one that is left, in its turn."""
    told, calls = [], []

    class Watched(FakeSam):
        def embed(self, images):
            calls.append(len(images))
            return super().embed(images)

    ProposalStage(replace(settings, images_per_batch=3), lambda _: Watched())(make_job("proposals"), told.append)
    assert calls == [3, 1]
    assert told == [10, 11, 12, 13, None]
    store = ProposalStore.open(settings.store)
    for key in KEYS:
        alone = segment_everything(FakeSam(), read_image(f"{settings.images}/{key.file_name}"), settings.proposals)
        assert [each.rle_counts for each in store.read(key.image_id)] == [each.rle_counts for each in alone]


def test_a_group_that_fails_together_is_done_one_by_one(settings, make_job):
    class NoRoom(FakeSam):
        def embed(self, images):
            if len(images) > 1:
                raise RuntimeError("no room for so many")
            return super().embed(images)

    report = ProposalStage(replace(settings, images_per_batch=4), lambda _: NoRoom())(make_job("proposals"))
    assert [(o.status, o.retries) for o in report.outcomes] == [("ok", 0)] * 4


def test_a_broken_image_in_a_group_is_set_aside_alone(settings, make_job, tmp_path):
    job = make_job("similarity")
    (tmp_path / "images/00.png").unlink()
    report = SimilarityStage(replace(settings, images_per_batch=3), lambda _: FakeSam())(job)
    assert [o.status for o in report.outcomes] == ["quarantined", "ok", "ok", "ok"]
