"""Training runs: what a config means, when a run is refused, and that an interruption leaves no trace."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.utils import get_object_from_string

from jobs import train_student, train_teacher
from jobs.config_files import load_config, write_resolved
from jobs.networks import open_config
from jobs.training.devices import refuse_missing_device, use_device
from jobs.training.launch import _tell, launch
from jobs.training.notes import rate_that_never_falls
from jobs.training.placeholders import expand
from jobs.training.run_directory import DONE, PROVENANCE, RESOLVED, held, last_checkpoint, read_done
from jobs.training.runs import prepare, read_training_config, train
from jobs.training.starting_weights import initialise, teacher_start
from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError, InputError, TooManyQuarantinedError
from pipeline.models.weights import read_checkpoint, read_weights
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
TEACHER, STUDENT = CONFIGS / "teacher/scenes_supervised.py", CONFIGS / "student/scenes_points.py"
SIZE = 64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", size=SIZE)


def small(scenes, *, streams=("",), **options):
    """Options that make a scenes config small; ``streams`` are the keys of the data sets below the dataset."""
    for stream in streams:
        data = f"train_dataloader.dataset.{stream}dataset.pipeline"
        options |= {f"{data}.0.scale": f"[({SIZE},{SIZE})]".strip("[]"), f"{data}.1.crop_size": f"({SIZE},{SIZE})"}
    values = {
        "data_root": scenes.root,
        "init_checkpoint": None,
        "device": "cpu",
        "max_iters": 4,
        "batch_size": 2,
        "log_interval": 1,
        "checkpoint_interval": 2,
        **options,
    }
    return [f"{key}={value}" for key, value in values.items()]


def small_student(scenes, teacher, **options):
    values = {
        "teacher_checkpoint": teacher,
        "burn_in": 1,
        "model.pseudo_labels.score_threshold": 0.0,
        "model.pseudo_labels.min_soft_area": 0.0,
    }
    return small(scenes, streams=("labelled.", "unlabelled."), **{**values, **options})


def run_training(config, options, work_dir, *, resume=False):
    run = prepare(config, cfg_options=options, work_dir=work_dir, resume=resume, overwrite=False)
    assert run is not None
    train(run)
    return work_dir


class Killed(Exception):
    """Stands for a signal: nothing is caught or cleaned up on its way."""


def killed_at_step(monkeypatch, step):
    """The process dies in this step, before its checkpoint."""
    from pipeline.models.training_hooks import StepSeedHook

    before = StepSeedHook.before_train_iter

    def dies(self, runner, batch_idx, data_batch=None):
        if runner.iter == step:
            raise Killed
        before(self, runner, batch_idx, data_batch)

    monkeypatch.setattr(StepSeedHook, "before_train_iter", dies)


def scramble():
    torch.manual_seed(12345), np.random.seed(12345), random.seed(12345)
    torch.rand(17), np.random.random(), random.random()


def same(first, second, path=""):
    """Two trees of checkpoints, bit for bit."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            same(a, b, f"{path}.{index}")
    else:
        assert first == second, path


def content(work_dir):
    from pipeline.models.weights import read_checkpoint

    checkpoint = read_checkpoint(work_dir / "iter_4.pth")
    parts = {name: checkpoint[name] for name in ("state_dict", "optimizer", "param_schedulers")}
    return {**parts, "iter": checkpoint["meta"]["iter"]}


@pytest.fixture(scope="module")
def teacher_run(scenes, tmp_path_factory):
    torch.set_num_threads(1)
    return run_training(TEACHER, small(scenes), tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture(scope="module")
def student_run(scenes, teacher_run, tmp_path_factory):
    torch.set_num_threads(1)
    return run_training(STUDENT, small_student(scenes, teacher_run), tmp_path_factory.mktemp("runs") / "student")


def interrupted(config, options, work_dir, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at_step(patch, 3)
        with pytest.raises(Killed):
            run_training(config, options, work_dir)
    assert last_checkpoint(work_dir).name == "iter_2.pth"
    assert not (work_dir / DONE).exists()
    scramble()
    return run_training(config, options, work_dir, resume=True)


def test_an_interrupted_teacher_ends_as_an_uninterrupted_one(scenes, teacher_run, tmp_path, monkeypatch):
    resumed = interrupted(TEACHER, small(scenes), tmp_path / "run", monkeypatch)
    expected = content(teacher_run)
    same(content(resumed), expected)
    assert expected["iter"] == 4
    assert expected["optimizer"]["state"]
    assert read_done(resumed) == read_done(teacher_run)


def test_an_interrupted_student_ends_as_an_uninterrupted_one(scenes, teacher_run, student_run, tmp_path, monkeypatch):
    resumed = interrupted(STUDENT, small_student(scenes, teacher_run), tmp_path / "run", monkeypatch)
    expected = content(student_run)
    same(content(resumed), expected)
    teacher = {n: v for n, v in expected["state_dict"].items() if n.startswith("teacher.")}
    start = content(teacher_run)["state_dict"]
    assert any(not torch.equal(v, start[n.removeprefix("teacher.")]) for n, v in teacher.items())  # the EMA took part
    lines = next(student_run.glob("*/vis_data/scalars.json")).read_text().splitlines()
    steps = [json.loads(line) for line in lines if "pseudo/per_image" in line]
    assert len(steps) == 4
    assert all(step["pseudo/per_image"] > 0 for step in steps)
    assert any(step["refiner/matched"] > 0 for step in steps)


def test_a_students_checkpoint_is_both_networks(student_run, teacher_run):
    names = set(content(student_run)["state_dict"])
    assert names == {f"{p}.{n}" for p in ("student", "teacher") for n in content(teacher_run)["state_dict"]}


def test_the_teacher_starts_from_its_own_run_and_the_student_from_its_own_start(scenes, teacher_run):
    """S4M: nothing of the first stage reaches the student but through pseudo-labels and the end of the burn-in."""
    options = small_student(scenes, teacher_run, init_checkpoint="scenes-base", init_skip=None)
    config = read_training_config(STUDENT, options)
    model = MODELS.build(config.model)
    before = {name: value.clone() for name, value in model.student.state_dict().items()}
    initialise(model, config)
    expected = content(teacher_run)["state_dict"]
    start = read_weights("scenes-base", prefix="student")
    assert all(torch.equal(value, expected[name]) for name, value in model.teacher.state_dict().items())
    anew = [name for name in before if "cls_embed" in name]
    for name, value in model.student.state_dict().items():
        assert torch.equal(value, before[name] if name in anew else start[name]), name
    assert anew
    assert any(not torch.equal(start[name], expected[name]) for name in start)


def test_a_teacher_of_another_share_of_labels_is_told_of(scenes, teacher_run, tmp_path, capsys):
    options = small_student(scenes, teacher_run)
    train_student.run(STUDENT, cfg_options=options, work_dir=tmp_path / "student", dry_run=True)
    assert "note:" not in capsys.readouterr().out
    split = json.loads((scenes.root / "split.json").read_text())
    moved = split["labelled"].pop()
    split["unlabelled"].append(moved)
    fewer = tmp_path / "split.json"
    fewer.write_text(json.dumps(split))
    train_student.run(
        STUDENT, cfg_options=[*options, f"split_file={fewer}"], work_dir=tmp_path / "student", dry_run=True
    )
    told = capsys.readouterr().out
    count = len(split["labelled"])
    assert f"the teacher learnt {count + 1} labelled images" in told
    assert f"this student has {count} ({fewer}); 1 of the teacher's are not among them" in told
    checkpoint = teacher_run / "iter_4.pth"
    by_file = [option for option in options if not option.startswith("teacher_checkpoint=")]
    by_file += [f"teacher_checkpoint={checkpoint}", f"split_file={fewer}"]
    train_student.run(STUDENT, cfg_options=by_file, work_dir=tmp_path / "student", dry_run=True)
    assert "this student has" in capsys.readouterr().out
    elsewhere = tmp_path / "published.pth"
    shutil.copy(checkpoint, elsewhere)
    by_file[-2] = f"teacher_checkpoint={elsewhere}"
    train_student.run(STUDENT, cfg_options=by_file, work_dir=tmp_path / "student", dry_run=True)
    assert "note:" not in capsys.readouterr().out


def test_a_run_leaves_its_figures_config_and_logs_in_its_own_folder(teacher_run, student_run):
    for folder in (teacher_run, student_run):
        done = read_done(folder)
        assert done["iterations"] == 4
        figures = {"mask_AP", "mask_AP50", "mask_AP75", "AR100"}
        both = {*figures, *(f"teacher_{name}" for name in figures)}
        assert set(done["validation"]) == (both if folder == student_run else figures)
        assert Config.fromfile(folder / RESOLVED).max_iters == 4
        assert len(list(folder.glob("*/vis_data/scalars.json"))) == 1  # the second run in a process has its own too
        assert list(folder.glob("*/vis_data/events.out.tfevents*"))


def test_a_finished_run_is_a_no_op(scenes, teacher_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in teacher_run.rglob("*") if p.is_file()}
    train_teacher.run(TEACHER, cfg_options=small(scenes), work_dir=teacher_run)
    assert "already finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in teacher_run.rglob("*") if p.is_file()} == before


def test_another_config_in_the_same_folder_is_refused(scenes, teacher_run):
    with pytest.raises(InputError, match=r"another configuration[\s\S]*seed = 0[\s\S]*seed = 3"):
        prepare(TEACHER, cfg_options=small(scenes, seed=3), work_dir=teacher_run, resume=True, overwrite=False)
    other = small(scenes, batch_size=1, max_iters=9, seed=2, log_interval=3)
    with pytest.raises(InputError, match=r"log_interval = 1[\s\S]*and \d+ more\n  got:[\s\S]*log_interval = 3"):
        prepare(TEACHER, cfg_options=other, work_dir=teacher_run, resume=True, overwrite=False)
    assert not list(teacher_run.glob("*.new.py"))


def test_a_run_goes_on_where_its_folder_was_moved_and_paths_are_written_otherwise(scenes, tmp_path, monkeypatch):
    unfinished(scenes, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(scenes.root)
    options = [option.replace(f"data_root={scenes.root}", "data_root=./") for option in small(scenes)]
    assert "data_root=./" in options
    run = prepare(TEACHER, cfg_options=options, work_dir=tmp_path / "moved", resume=True, overwrite=False)
    assert run.resume_from == tmp_path / "moved/iter_2.pth"


def unfinished(scenes, folder):
    """A run directory as a killed run leaves it."""
    run = prepare(TEACHER, cfg_options=small(scenes), work_dir=folder, resume=False, overwrite=False)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "iter_2.pth")
    return run


def test_a_run_goes_on_with_as_many_workers_as_it_was_begun_with(scenes, tmp_path):
    folder = tmp_path / "run"
    arguments = {"cfg_options": small(scenes), "work_dir": folder, "overwrite": False}
    prepare(TEACHER, **arguments, resume=False, workers=4)
    torch.save({"state_dict": {}}, folder / "iter_2.pth")
    with pytest.raises(InputError, match=r"workers[\s\S]*--workers 4[\s\S]*got:\s+--workers 1"):
        prepare(TEACHER, **arguments, resume=True)
    assert prepare(TEACHER, **arguments, resume=True, workers=4).resume_from == folder / "iter_2.pth"
    # one that does not say how many it was begun with goes on with any
    stored = json.loads((folder / PROVENANCE).read_text())
    del stored["workers"]
    (folder / PROVENANCE).write_text(json.dumps(stored))
    assert prepare(TEACHER, **arguments, resume=True, workers=2) is not None


def test_an_unfinished_run_wants_resume_or_overwrite(scenes, tmp_path):
    folder = tmp_path / "run"
    assert unfinished(scenes, folder).resume_from is None
    arguments = {"cfg_options": small(scenes), "work_dir": folder}
    with pytest.raises(InputError, match=r"unfinished run[\s\S]*--resume"):
        prepare(TEACHER, **arguments, resume=False, overwrite=False)
    assert prepare(TEACHER, **arguments, resume=True, overwrite=False).resume_from == folder / "iter_2.pth"
    assert prepare(TEACHER, **arguments, resume=False, overwrite=True).resume_from is None
    assert not (folder / "iter_2.pth").exists()


def test_there_must_be_something_to_resume(scenes, tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        prepare(TEACHER, cfg_options=small(scenes), work_dir=tmp_path / "run", resume=True, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_no_run_directory(scenes, tmp_path, overwrite):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "thesis.txt").write_text("years")
    (tmp_path / ".DS_Store").touch()
    arguments = {"cfg_options": small(scenes), "work_dir": tmp_path, "resume": False, "overwrite": overwrite}
    with pytest.raises(InputError, match=r"other things[\s\S]*got: +annotations, thesis.txt\n"):
        prepare(TEACHER, **arguments)
    assert (tmp_path / "thesis.txt").exists()
    assert not (tmp_path / RESOLVED).exists()


def test_overwrite_deletes_a_run_and_not_what_was_put_beside_it(scenes, teacher_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(teacher_run, folder)
    (folder / "ray").mkdir()  # with more than one worker
    arguments = {"cfg_options": small(scenes), "work_dir": folder, "resume": False, "overwrite": True}
    (folder / "manifest.json").write_text("a store's")
    with pytest.raises(InputError, match=r"other things[\s\S]*manifest\.json"):
        prepare(TEACHER, **arguments)
    assert last_checkpoint(folder) is not None
    (folder / "manifest.json").unlink()
    assert prepare(TEACHER, **arguments).resume_from is None
    assert {path.name for path in folder.iterdir()} == {RESOLVED, PROVENANCE}


@pytest.mark.parametrize("setting", ["init_checkpoint", "teacher_checkpoint"])
def test_a_start_that_cannot_be_loaded_deletes_nothing(scenes, teacher_run, student_run, tmp_path, setting):
    folder = tmp_path / "run"
    shutil.copytree(student_run, folder)
    options = [*small_student(scenes, teacher_run), f"{setting}={scenes.annotations('train')}"]
    for arguments in ({"overwrite": True}, {"dry_run": True}):
        with pytest.raises(CheckpointError, match=r"train\.json"):
            launch(STUDENT, stage="student", cfg_options=options, work_dir=folder, **arguments)
    assert (folder / DONE).exists()


def test_a_wrong_option_deletes_nothing(scenes, tmp_path):
    folder = tmp_path / "run"
    unfinished(scenes, folder)
    with pytest.raises(ConfigError):
        prepare(TEACHER, cfg_options=["max_itres=3"], work_dir=folder, resume=False, overwrite=True)
    assert (folder / "iter_2.pth").exists()


def test_the_newest_whole_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10, 9):
        torch.save({"a": torch.rand(1000)}, tmp_path / f"iter_{step}.pth")
    assert last_checkpoint(tmp_path).name == "iter_10.pth"
    whole = (tmp_path / "iter_10.pth").read_bytes()
    (tmp_path / "iter_10.pth").write_bytes(whole[:-200])  # killed while writing
    (tmp_path / "iter_best.pth").write_bytes(whole)
    assert last_checkpoint(tmp_path).name == "iter_9.pth"


def test_a_full_disk_names_the_run_directory_and_the_way_on(scenes, tmp_path, monkeypatch):
    from mmengine.fileio import LocalBackend

    folder = tmp_path / "run"

    def half(self, content, path):
        Path(path).write_bytes(content if path.endswith("iter_2.pth") else content[: len(content) // 2])
        if not path.endswith("iter_2.pth"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a name, as a file object's write says it

    monkeypatch.setattr(LocalBackend, "put", half)
    with pytest.raises(EnvironmentProblemError, match=r"disk is full[\s\S]*No space left[\s\S]*--resume") as caught:
        run_training(TEACHER, small(scenes), folder)
    assert caught.value.where == folder
    assert (folder / "iter_4.pth").exists()
    assert last_checkpoint(folder).name == "iter_2.pth"


def test_a_poisoned_checkpoint_is_not_resumed_from(scenes, tmp_path):
    marker, folder = tmp_path / "ran", tmp_path / "run"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    unfinished(scenes, folder)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Attack()}, folder / "iter_2.pth")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        run_training(TEACHER, small(scenes), folder, resume=True)
    assert not marker.exists()


def test_a_student_names_what_is_wrong_with_its_teacher(scenes, tmp_path):
    def start(teacher):
        options = small_student(scenes, teacher)
        train_student.run(STUDENT, cfg_options=options, work_dir=tmp_path / "run", overwrite=True)

    with pytest.raises(CheckpointError, match=r"no such checkpoint[\s\S]*none\.pth[\s\S]*train-teacher"):
        start(tmp_path / "none.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"run directory[\s\S]*train-teacher"):
        start(tmp_path / "empty")
    with pytest.raises(ConfigError, match="needs a teacher"):
        start(None)
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="another network"):
        start(tmp_path / "other.pth")


def test_a_run_directory_stands_for_its_newest_checkpoint(teacher_run):
    assert teacher_start(str(teacher_run)) == str(teacher_run / "iter_4.pth")
    assert teacher_start(str(teacher_run / "iter_2.pth")) == str(teacher_run / "iter_2.pth")
    assert teacher_start("scenes-base") == "scenes-base"


def test_both_networks_are_validated_each_with_its_own_weights(scenes, teacher_run, tmp_path, monkeypatch):
    """The sum of a network's weights tells which one was asked; the best checkpoint is the student's best score."""
    from pipeline.models.training_hooks import MaskApMetric
    from pipeline.models.validation import BothNetworksLoop

    seen, asked = [], []
    figures_of = BothNetworksLoop._figures_of

    def of(loop, network):
        asked.append(getattr(loop.runner.model, network))
        return figures_of(loop, network)

    def score(metric, results):
        seen.append(float(sum(value.double().abs().sum() for value in asked[-1].state_dict().values())))
        # Of the student, the teacher, the student ...
        return {"mask_AP": [1.0, 0.0, 3.0, 0.0, 2.0, 0.0][len(seen) - 1], "weights": seen[-1]}

    monkeypatch.setattr(BothNetworksLoop, "_figures_of", of)
    monkeypatch.setattr(MaskApMetric, "compute_metrics", score)
    options = {"max_iters": 6, "train_cfg.val_interval": 2, "best_figure": "coco/mask_AP"}
    folder = run_training(STUDENT, small_student(scenes, teacher_run, **options), tmp_path / "run")
    assert [path.name for path in folder.glob("best_*")] == ["best_coco_mask_AP_iter_4.pth"]
    best = read_checkpoint(folder / "best_coco_mask_AP_iter_4.pth")["state_dict"]
    for network, at in (("student", 2), ("teacher", 3)):
        weights = [value for name, value in best.items() if name.startswith(f"{network}.")]
        assert seen[at] == pytest.approx(float(sum(value.double().abs().sum() for value in weights)), rel=1e-12)
    assert seen[2] != seen[3]
    figures = read_done(folder)["validation"]
    assert (figures["mask_AP"], figures["weights"], figures["teacher_weights"]) == (2.0, seen[4], seen[5])


@pytest.fixture
def heard():
    """Signals as a process in a terminal's foreground hears them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def readers_of(runner):
    """The processes that read for this run; an earlier test's may still end."""
    return getattr(runner.train_loop.dataloader_iterator._iterator, "_workers", [])


def signalled(monkeypatch, number, *, step=None, in_validation_of=None):
    """The process and those that read for it get a signal in this step, or in the validation after it."""
    from pipeline.models.training_hooks import MaskApMetric, StepSeedHook

    before, process, now = StepSeedHook.before_train_iter, MaskApMetric.process, []

    def before_step(self, runner, batch_idx, data_batch=None):
        now.append(runner.iter)
        if runner.iter == step:
            readers = [str(process.pid) for process in readers_of(runner)]
            assert len(readers) == runner.train_dataloader.num_workers
            if readers:
                subprocess.run(["kill", f"-{int(number)}", *readers], check=True)
            os.kill(os.getpid(), number)
        before(self, runner, batch_idx, data_batch)

    def in_validation(self, data_batch, data_samples):
        if now[-1] + 1 == in_validation_of:
            os.kill(os.getpid(), number)
        process(self, data_batch, data_samples)

    monkeypatch.setattr(StepSeedHook, "before_train_iter", before_step)
    monkeypatch.setattr(MaskApMetric, "process", in_validation)


@pytest.mark.parametrize(
    ("number", "when", "saved", "more"),
    [
        (signal.SIGTERM, {"step": 2}, "iter_3.pth", {}),
        (signal.SIGINT, {"step": 0}, "iter_1.pth", {}),
        (signal.SIGTERM, {"step": 2}, "iter_3.pth", {"train_dataloader.num_workers": 1}),
        (signal.SIGTERM, {"in_validation_of": 1}, "iter_1.pth", {"train_cfg.val_interval": 1}),
        (signal.SIGTERM, {"in_validation_of": 2}, "iter_2.pth", {"train_cfg.val_interval": 2}),
    ],
)
def test_a_signal_saves_the_step_it_comes_in(
    scenes, teacher_run, tmp_path, monkeypatch, heard, number, when, saved, more
):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    options = small(scenes, **more)
    with monkeypatch.context() as patch:
        signalled(patch, number, **when)
        with pytest.raises(SystemExit) as stop:
            run_training(TEACHER, options, tmp_path / "run")
    assert stop.value.code == 128 + number
    assert last_checkpoint(tmp_path / "run").name == saved
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    scramble()
    run_training(TEACHER, options, tmp_path / "run", resume=True)
    same(content(tmp_path / "run"), content(teacher_run))


def test_a_reading_process_that_is_killed_is_told_and_a_run_goes_on_without(scenes, teacher_run, tmp_path, monkeypatch):
    from pipeline.models.training_hooks import StepSeedHook

    before = StepSeedHook.before_train_iter

    def kills(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            (reader,) = readers_of(runner)
            reader.kill()
            reader.join()
        before(self, runner, batch_idx, data_batch)

    with monkeypatch.context() as patch:
        patch.setattr(StepSeedHook, "before_train_iter", kills)
        with pytest.raises(EnvironmentProblemError, match=r"reads images has ended[\s\S]*num_workers=0"):
            run_training(TEACHER, small(scenes, **{"train_dataloader.num_workers": 1}), tmp_path / "run")
    assert last_checkpoint(tmp_path / "run").name == "iter_2.pth"
    scramble()
    run_training(TEACHER, small(scenes), tmp_path / "run", resume=True)
    same(content(tmp_path / "run"), content(teacher_run))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpi_u", "points"])
def test_reading_processes_change_nothing(demo, teacher_run, tmp_path, name):
    for num_workers in (0, 2):
        options = {f"{part}_dataloader.num_workers": num_workers for part in ("train", "val")}
        if name == "cpi_u":
            options["store"] = demo.root / "store"
        settings = small_student(demo.scenes, teacher_run, **options)
        run_training(CONFIGS / f"student/scenes_{name}.py", settings, tmp_path / f"run_{num_workers}")
    same(content(tmp_path / "run_0"), content(tmp_path / "run_2"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_cannot_be_read_any_more_cost_no_step(
    scenes, teacher_run, tmp_path, monkeypatch, capsys, num_workers
):
    from pipeline.data.instance_dataset import StreamDataset

    read = StreamDataset.__getitem__

    def fails(self, position):
        if position >= 6:  # of batches of two
            raise TooManyQuarantinedError("all broken")
        return read(self, position)

    options = small(scenes, **{"train_dataloader.num_workers": num_workers})
    with monkeypatch.context() as patch:
        patch.setattr(StreamDataset, "__getitem__", fails)
        with pytest.raises(TooManyQuarantinedError, match=r"^all broken$"):
            run_training(TEACHER, options, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run").name == "iter_3.pth"
    assert "stopped after step 3; saved" in capsys.readouterr().out
    scramble()
    run_training(TEACHER, options, tmp_path / "run", resume=True)
    same(content(tmp_path / "run"), content(teacher_run))


@pytest.mark.usefixtures("heard")
def test_a_second_signal_is_not_waited_with():
    from pipeline.models.stop_hook import StopHook

    with StopHook() as hook:
        os.kill(os.getpid(), signal.SIGINT)
        assert hook.heard == signal.SIGINT
        # Ctrl-C in a terminal reaches a task too, and then ablate tells it to stop: that is one wish.
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("heard")
def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGINT is in what a shell starts in the background."""
    from pipeline.models.stop_hook import StopHook

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopHook() as hook:
        os.kill(os.getpid(), signal.SIGINT)
        assert hook.heard is None
        assert signal.getsignal(signal.SIGTERM) == hook._hear
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def scored(monkeypatch, scores, *, killed_in=None):
    """Validations of these scores by step; the process dies in that of one. Returns the steps that were validated."""
    from mmengine.runner import ValLoop

    from pipeline.models.training_hooks import MaskApMetric

    done, validate = [], ValLoop.run

    def run(loop):
        if loop.runner.iter == killed_in:
            raise Killed
        done.append(loop.runner.iter)
        return validate(loop)

    monkeypatch.setattr(ValLoop, "run", run)
    monkeypatch.setattr(MaskApMetric, "compute_metrics", lambda *_: {"mask_AP": scores[done[-1]]})
    return done


@pytest.mark.parametrize(("killed_in", "validated"), [(2, [2, 4]), (4, [4])])
@pytest.mark.parametrize("scores", [{2: 3.0, 4: 1.0}, {2: 1.0, 4: 3.0}])
def test_a_run_killed_in_a_validation_makes_up_for_it(scenes, tmp_path, monkeypatch, killed_in, validated, scores):
    options = small(scenes, **{"train_cfg.val_interval": 2, "best_figure": "coco/mask_AP"})
    with monkeypatch.context() as patch:
        scored(patch, scores, killed_in=killed_in)
        with pytest.raises(Killed):
            run_training(TEACHER, options, tmp_path / "run")
    done = scored(monkeypatch, scores)
    run_training(TEACHER, options, tmp_path / "run", resume=True)
    assert done == validated
    best = max(scores, key=scores.get)
    assert [path.name for path in (tmp_path / "run").glob("best_*")] == [f"best_coco_mask_AP_iter_{best}.pth"]
    assert read_done(tmp_path / "run")["validation"]["mask_AP"] == scores[4]


def test_an_unfinished_run_is_no_teacher_unless_its_file_is_named(scenes, tmp_path):
    folder = tmp_path / "teacher"
    unfinished(scenes, folder)
    with pytest.raises(CheckpointError, match=r"has not finished[\s\S]*iter_2\.pth[\s\S]*--resume"):
        teacher_start(str(folder))
    assert teacher_start(str(folder / "iter_2.pth")) == str(folder / "iter_2.pth")


def test_a_student_goes_on_when_its_teachers_folder_is_gone_and_says_what_it_started_from(
    scenes, teacher_run, tmp_path
):
    start = tmp_path / "teacher.pth"
    shutil.copy(teacher_run / "iter_4.pth", start)
    options = small_student(scenes, start)
    folder = tmp_path / "student"
    prepare(STUDENT, cfg_options=options, work_dir=folder, resume=False, overwrite=False)
    assert json.loads((folder / PROVENANCE).read_text())["starts_from"] == {"teacher_checkpoint": str(start)}
    start.unlink()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        prepare(STUDENT, cfg_options=options, work_dir=folder, resume=False, overwrite=False)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "iter_2.pth")
    run = prepare(STUDENT, cfg_options=options, work_dir=folder, resume=True, overwrite=False)
    assert run.resume_from == folder / "iter_2.pth"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused_with_the_way_out(scenes, tmp_path):
    with pytest.raises(EnvironmentProblemError, match=r"half precision[\s\S]*optim_wrapper\.type=OptimWrapper"):
        run_training(TEACHER, small(scenes, **{"optim_wrapper.type": "AmpOptimWrapper"}), tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("config", "option", "message"),
    [
        (TEACHER, ("optim_wrapper.type", "AmpOptimWrapper"), "half precision needs a GPU"),
        (STUDENT, ("model.refiner.device", "cuda"), r"no GPU for SAM[\s\S]*model\.refiner\.device=cpu"),
        (CONFIGS / "ablation/sd_live_teacher.py", ("model.live_sam.device", "cuda:0"), r"model\.live_sam\.device"),
        (
            CONFIGS / "ablation/sd_live_teacher.py",
            ("model.live_sam.precision", "bf16"),
            r"bf16 is for CUDA[\s\S]*--cfg-options model\.live_sam\.precision=fp32",
        ),
        (TEACHER, ("device", "cuda"), "no GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_before_anything_is_deleted(scenes, teacher_run, tmp_path, config, option, message):
    folder = tmp_path / "run"
    unfinished(scenes, folder)
    options = small_student(scenes, teacher_run) if config == STUDENT else small(scenes)
    options += [f"{option[0]}={option[1]}"]
    stage = "student" if config == STUDENT else "teacher"
    for arguments in ({"overwrite": True}, {"dry_run": True}):
        with pytest.raises(EnvironmentProblemError, match=message):
            launch(config, stage=stage, cfg_options=options, work_dir=folder, **arguments)
    assert (folder / "iter_2.pth").exists()


def test_a_cluster_may_have_the_gpu_that_this_machine_lacks(scenes, capsys):
    options = [*small(scenes, device="cuda"), "optim_wrapper.type=AmpOptimWrapper"]
    launch(TEACHER, stage="teacher", cfg_options=options, dry_run=True, ray_address="10.0.0.1:6379")
    assert "would train" in capsys.readouterr().out


def test_a_teacher_that_never_moves_is_told_of(scenes, teacher_run, capsys):
    for burn_in, is_told in ((3, False), (4, True)):
        options = small_student(scenes, teacher_run, burn_in=burn_in)
        launch(STUDENT, stage="student", cfg_options=options, dry_run=True)
        assert ("the teacher never moves" in capsys.readouterr().out) == is_told


def test_a_learning_rate_that_never_falls_is_told_of(capsys):
    for max_iters, is_told in ((330_000, False), (20_000, True)):
        _tell(read_training_config(CONFIGS / "teacher/coco_r50.py", [f"max_iters={max_iters}"]))
        assert (
            "rate is to fall at the steps 327778, 355092, and max_iters=20000" in capsys.readouterr().out
        ) == is_told
    assert "milestones=[45, 48]" in rate_that_never_falls(
        {"param_scheduler": [{"milestones": [90, 96]}], "max_iters": 50}
    )
    assert rate_that_never_falls({"param_scheduler": {"type": "PolyLR"}, "max_iters": 50}) is None


STARTED = (TEACHER, *(CONFIGS / f"teacher/refer_scenes_{name}.py" for name in ("lavt", "rela")))


@pytest.mark.parametrize("config", STARTED, ids=lambda path: path.stem)
def test_the_shipped_start_is_what_a_network_begins_with(config):
    config = open_config(config, [])
    model = MODELS.build(config.model)
    initialise(model, config)
    start, begun = read_weights(config.init_checkpoint), model.state_dict()
    assert len(start) > 100
    assert all(torch.equal(begun[name].float(), value.float()) for name, value in start.items())


@pytest.mark.parametrize(
    ("command", "config", "right"),
    [(train_teacher, STUDENT, "train-student"), (train_student, TEACHER, "train-teacher")],
)
def test_a_config_of_the_other_stage_is_refused(command, config, right, tmp_path):
    with pytest.raises(ConfigError, match=rf"does not train a[\s\S]*{config.name}[\s\S]*s4m-pipeline {right}"):
        command.run(config, cfg_options=[], work_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_has_one_process(scenes, tmp_path):
    folder = tmp_path / "runs" / "run"
    with held(folder), pytest.raises(InputError, match=r"another process[\s\S]*runs/run"):
        train_teacher.run(TEACHER, cfg_options=small(scenes), work_dir=folder, overwrite=True)
    assert not folder.exists()
    with held(folder):
        pass


def test_a_dry_run_writes_nothing(scenes, tmp_path, capsys):
    options = small(scenes)
    train_teacher.run(TEACHER, cfg_options=options, work_dir=tmp_path / "run", dry_run=True)
    assert "would train 4 steps of 2 images" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(scenes, tmp_path):
    with pytest.raises(EnvironmentProblemError, match="no GPU"):
        run_training(TEACHER, small(scenes, device="cuda"), tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown device"):
        refuse_missing_device({"device": "tpu"})
    refuse_missing_device({"device": "cpu"})
    refuse_missing_device({})


def test_cpu_is_the_cpu_also_where_there_is_a_gpu(monkeypatch):
    from mmengine.device import get_device, utils

    monkeypatch.setattr(utils, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    use_device({"device": "cpu"})
    assert get_device() == "cpu"
    use_device({"device": "auto"})
    assert get_device() == "cuda"


def expanded(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    config = load_config(path)
    expand(config)
    return config


def test_a_placeholder_alone_keeps_the_settings_type(tmp_path):
    settings = "steps = 7\nrate = 0.5\nnothing = None\nflag = True\n"
    config = expanded(tmp_path, settings + "a = dict(b=['{steps}', ('{rate}',)], c='{nothing}', d='{flag}')\n")
    assert config.a.b[0] == 7
    assert type(config.a.b[0]) is int
    assert tuple(config.a.b[1]) == (0.5,)
    assert config.a.c is None
    assert config.a.d is True


def test_placeholders_in_text_and_through_other_settings(tmp_path):
    config = expanded(tmp_path, "root = 'x'\nfile = '{root}/{steps}.json'\nsteps = 3\na = dict(b='{file}?')\n")
    assert (config.file, config.a.b) == ("x/3.json", "x/3.json?")


def test_options_reach_what_the_placeholders_say(tmp_path):
    (tmp_path / "config.py").write_text("root = 'x'\na = dict(b='{root}/y')\n")
    config = load_config(tmp_path / "config.py", ["root=z"])
    expand(config)
    assert config.a.b == "z/y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = dict(b='{missing}')\n", "missing"),
        ("a = dict(b='{table}')\ntable = dict(c=1)\n", "table"),
        ("x = '{y}'\ny = '{x}'\n", "circle"),
    ],
)
def test_a_placeholder_without_a_setting_is_an_error(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        expanded(tmp_path, text)


def every_entry(tree, key=""):
    """(key, value) at every depth."""
    if isinstance(tree, dict):
        for name, value in dict.items(tree):
            yield from every_entry(value, name)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from every_entry(value)
    else:
        yield key, tree


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!_]*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads_expands_and_its_classes_import(path, tmp_path):
    import pipeline.models.mmcv_ops  # noqa: F401

    config = load_config(path)
    is_training = "model" in config  # the others are of precompute-sam
    if is_training:
        expand(config)
    write_resolved(config, tmp_path / RESOLVED)
    entries = list(every_entry(Config.fromfile(tmp_path / RESOLVED)._cfg_dict))
    assert not [value for _, value in entries if isinstance(value, str) and "{" in value]
    named = {value for key, value in entries if key == "type" and "." in value}
    assert all(isinstance(get_object_from_string(name), type | FunctionType) for name in named)
    assert len(named) > 20 or not is_training
    assert is_training == (path.parent.name != "sam" and not path.stem.endswith("_sam"))
