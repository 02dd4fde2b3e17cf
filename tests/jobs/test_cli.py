"""The command line: instant help, documented exit codes, one message and no traceback."""

import errno
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from jobs import cli
from pipeline.errors import (
    AnnotationError,
    ConfigError,
    EnvironmentProblemError,
    StoreDamagedError,
    StoreMismatchError,
    TooManyQuarantinedError,
)

ROOT = Path(__file__).parents[2]
VERBS = (
    "precompute-sam",
    "train-teacher",
    "train-student",
    "pseudo-label",
    "evaluate",
    "split",
    "export-proposals",
    "import-proposals",
    "demo",
    "ablate",
    "predict",
    "correction-stats",
    "convert-cityscapes",
    "export",
    "doctor",
)
HEAVY = ("torch", "ray", "mmdet", "mmengine", "mmcv", "sam2", "zarr", "pyarrow", "numpy", "cv2", "rich")


def exit_code(*words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code


@pytest.fixture(autouse=True)
def _keep_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def job(monkeypatch):
    """Put ``run`` in place of a job; returns a function that sets what it does and a list of its calls."""
    calls = []

    def install(name, action=lambda: None):
        def run(*args, **options):
            calls.append((args, options))
            action()

        module = types.ModuleType(f"jobs.{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, f"jobs.{name}", module)
        return calls

    return install


def fail_with(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)], ids=" ".join)
def test_help_is_there_and_tells_the_exit_codes(words, capsys):
    assert exit_code(*words, "--help") == 0
    out = capsys.readouterr().out
    assert "Exit codes: 0 done;" in out
    assert "143" in out


def test_help_lists_every_verb(capsys):
    exit_code("--help")
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_help_imports_nothing_heavy():
    code = f"import sys, jobs.cli\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [(), ("precompute-sam",), ("demo",)], ids=" ".join)
def test_help_takes_less_than_half_a_second_of_processor_time(words):
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "jobs.cli", *words, "--help"], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    # Processor time, because the machine may be busy; help does not wait for anything.
    assert min(seconds) < 0.5


def test_version(capsys):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.strip().count(".") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("precompute-sma",),
        ("precompute-sam",),
        ("train-teacher", "c.py", "--no-such-option"),
        ("train-teacher", "c.py", "--resume", "--overwrite"),
        ("precompute-sam", "c.py", "--limit", "0"),
        ("split", "a.json", "--out", "o.json"),
        ("split", "a.json", "--out", "o.json", "--percent", "10", "--names", "n.txt"),
        ("demo", "--tiny", "--long"),
        ("ablate", "6", "--seeds", "0"),
        ("ablate", "6", "--budget", "huge"),
        ("ablate", "6", "--percent", "500"),
        ("ablate", "6", "--percent", "0"),
        ("ablate", "6", "--percent", "nan"),
        ("export", "c.py", "c.pth"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(words, job):
    calls = [job(name) for name in ("precompute_sam", "train_teacher", "split", "demo", "ablate")].pop()
    assert exit_code(*words) == 2
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 3),
        (AnnotationError("x"), 3),
        (StoreMismatchError("x"), 3),
        (TooManyQuarantinedError("x"), 4),
        (StoreDamagedError("x"), 5),
        (EnvironmentProblemError("x"), 6),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_their_codes(error, code, job):
    job("train_teacher", fail_with(error))
    assert exit_code("train-teacher", "c.py") == code


def test_an_error_is_one_message_on_stderr_and_a_traceback_only_with_debug(job, capsys):
    job("train_teacher", fail_with(ConfigError("no key", where="c.py", expected="a", got="b", fix="write a")))
    assert exit_code("train-teacher", "c.py") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: no key",
        "  where:    c.py",
        "  expected: a",
        "  got:      b",
        "  next:     write a",
    ]
    for words in (["--debug", "train-teacher", "c.py"], ["train-teacher", "c.py", "--debug"]):
        with pytest.raises(ConfigError):
            cli.main(words)


def test_the_unexpected_is_1_and_one_line(job, capsys):
    job("demo", fail_with(ZeroDivisionError("division\nby zero")))
    assert exit_code("demo") == 1
    err = capsys.readouterr().err
    assert err.splitlines() == ["unexpected ZeroDivisionError: division by zero", "  next:     run again with --debug"]


def test_a_path_that_cannot_be_used_is_named(job, capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    job("demo", lambda: (file / "below").mkdir(parents=True))
    assert exit_code("demo") == 3
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "error: Not a directory"
    assert str(file) in err[1]
    assert err[-1].startswith("  next:")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_plainly_with_the_file_where_it_is_known(job, capsys, tmp_path, number):
    job("demo", fail_with(OSError(number, os.strerror(number), str(tmp_path / "file"))))
    assert exit_code("demo") == 6
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "error: a file cannot be written, the disk is full"
    assert err[1] == f"  where:    {tmp_path / 'file'}"
    assert os.strerror(number) in err[2]
    assert "MB free there" in err[2]
    assert "make room" in err[-1]
    job("demo", fail_with(OSError(number, os.strerror(number))))
    assert exit_code("demo") == 6
    assert "where:" not in capsys.readouterr().err


def test_interruption_is_130(job, capsys):
    job("demo", fail_with(KeyboardInterrupt()))
    assert exit_code("demo") == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_an_interrupted_training_says_how_it_goes_on(job, capsys, more):
    job("train_teacher", fail_with(KeyboardInterrupt()))
    assert exit_code("train-teacher", "c.py", *more) == 130
    assert ("the same command with --resume goes on" in capsys.readouterr().err) == (not more)


def test_termination_is_143_and_cleans_up(tmp_path):
    code = (
        "import sys, time, types\n"
        "from pathlib import Path\n"
        "def run(**_):\n"
        "    try:\n"
        "        Path(sys.argv[1], 'running').touch(); time.sleep(60)\n"
        "    finally:\n"
        "        Path(sys.argv[1], 'clean').touch()\n"
        "module = types.ModuleType('jobs.demo'); module.run = run; sys.modules['jobs.demo'] = module\n"
        "from jobs.cli import main\n"
        "main(['demo'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert (tmp_path / "clean").exists()


def test_options_reach_the_job_under_their_names(job):
    calls = job("precompute_sam")
    cli_words = [
        "precompute-sam",
        "c.py",
        "--cfg-options",
        "a=1",
        "--cfg-options",
        "b=[1,2]",
        "--limit",
        "5",
        "--dry-run",
    ]
    assert exit_code(*cli_words, "--work-dir", "w", "--ray-address", "auto") == 0
    assert calls == [
        (
            (),
            {
                "config_path": Path("c.py"),
                "cfg_options": ["a=1", "b=[1,2]"],
                "work_dir": Path("w"),
                "resume": False,
                "overwrite": False,
                "dry_run": True,
                "limit": 5,
                "ray_address": "auto",
                "gpu": None,
            },
        )
    ]


def test_the_help_of_an_estimate_says_what_was_measured():
    from jobs.precompute.cost_model import load_table, measured_so_far

    assert cli.opt._measured() == measured_so_far(load_table())


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_command_is_a_parameter_of_its_job(verb):
    """Against the jobs themselves, so that neither side can be renamed alone."""
    import importlib.util
    import inspect

    name = verb.replace("-", "_")
    if importlib.util.find_spec(f"jobs.{name}") is None:
        pytest.fail(f"jobs/{name}.py does not exist")
    run = importlib.import_module(f"jobs.{name}").run
    command = getattr(cli, name)
    assert set(inspect.signature(command).parameters) <= set(inspect.signature(run).parameters)
