"""Start a training run: in this process, or in several that Ray Train starts."""

from pathlib import Path
from typing import Any

from jobs.config_files import load_config
from jobs.ray_training import train_on_ray
from jobs.training import expand, finished_line, prepare, read_done, run_dir, say, train


def launch(
    config_path: Path,
    *,
    cfg_options: list[str],
    work_dir: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    workers: int,
    ray_address: str,
) -> dict[str, Any]:
    """Prepare a run and train it here or in Ray Train workers; see ``jobs.train_teacher.run`` for the arguments.

    Returns:
        The last validation's figures (empty for a dry run).
    """
    if dry_run:
        config = load_config(config_path, cfg_options)
        expand(config)
        say(f"would train {config.max_iters} steps of {config.batch_size} images per worker, {workers} worker(s)")
        return {}
    run = prepare(config_path, cfg_options=cfg_options, work_dir=work_dir, resume=resume, overwrite=overwrite)
    if run is None:
        folder = run_dir(config_path, work_dir)
        figures: dict[str, Any] = read_done(folder)["validation"]
        say(f"already finished: {folder} ({figures})")
        return figures
    if workers == 1:
        figures = train(run)
    else:
        train_on_ray(run, workers=workers, ray_address=ray_address)
        figures = read_done(run.work_dir)["validation"]
    say(finished_line(run, figures))
    return figures
