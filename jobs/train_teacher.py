"""``s4m-pipeline train-teacher``: Mask2Former on the labelled images, with SAM's structure as a second signal."""

from pathlib import Path

from jobs.launch import launch


def run(
    config_path: Path,
    *,
    cfg_options: list[str],
    work_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    workers: int = 1,
    ray_address: str = "local",
) -> None:
    """Train, or say that it is done.

    Args:
        config_path: A file of configs/teacher or a copy.
        cfg_options: key=value overrides.
        work_dir: The run directory; work_dirs/<folder>_<name> by default.
        resume: Go on from the last checkpoint.
        overwrite: Delete the run directory first.
        dry_run: Only print what would be done.
        workers: Training processes; more than one are started by Ray Train.
        ray_address: Cluster for those.
    """
    launch(
        config_path,
        cfg_options=cfg_options,
        work_dir=work_dir,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        workers=workers,
        ray_address=ray_address,
    )
