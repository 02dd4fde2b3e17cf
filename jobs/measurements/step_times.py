"""Where the time of a training step goes: milliseconds and shares of its parts, on a finished demo's data.

    python -m jobs.measurements.step_times CONFIG ... --demo demo

Configs of sentences find theirs with ``--cfg-options`` data_root, split_file, store and teacher_checkpoint.

All configs are trained in one process, a step of each in turn, so that a busy machine slows all alike; shares are worth
keeping, milliseconds less so. Timers are put around functions from outside while this runs. A part's time is its own:
what a part inside it takes is counted there and not here. On a GPU every part waits for the device.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from jobs.bench.cases import quartiles
from jobs.bench.stepping import Stepper, demo_config
from jobs.bench.stock_generator import synchronise
from jobs.progress import say
from jobs.provenance import provenance
from pipeline.data import instance_dataset, transforms
from pipeline.data.referring.sets import ReferSet
from pipeline.errors import PipelineError
from pipeline.models import mask2former, semi_student, training_hooks
from pipeline.models.referring import refer_labels
from pipeline.models.referring.segmentor import ReferSegmentor
from pipeline.models.referring.semi_refer import SemiReferStudent
from pipeline.models.semi_student import SemiStudent
from pipeline.refine.point_prompt import PointPromptRefiner
from pipeline.sam.sam2_backend import Sam2Backend
from pipeline.stores.proposal_store import ProposalStore

RESULTS = Path(__file__).parents[2] / "docs/results/step_times.json"
READ, LABELS, ROWS, VIEWS = "read images", "labels to masks", "similarity rows read", "transforms, collation"
READY, TEACHER = "normalise, pad", "teacher: forward, filter"
FRAMES, LIBRARY, MATCH = "masks to the image and back", "library read", "match, or draw points"
ENCODE, DECODE, WATCH = "SAM encodes", "SAM decodes", "quality watched"
ARP, STRONG = "ARP", "strong view"
STUDENT, ASSIGN, STRUCTURAL = "student: forward, losses", "student: matching", "structural loss"
STRUCTURAL_BACK, BACKWARD = "structural loss, backward", "backward, the other losses"
OPTIMIZER, EMA, REST = "optimizer", "EMA", "rest"
PARTS = (
    *(READ, LABELS, ROWS, VIEWS, READY, TEACHER, FRAMES, LIBRARY, MATCH, ENCODE, DECODE, WATCH),
    *(ARP, STRONG, STUDENT, ASSIGN, STRUCTURAL, STRUCTURAL_BACK, BACKWARD, OPTIMIZER, EMA, REST),
)
"""In the order of a step."""
SUMS = {
    "data": (READ, LABELS, ROWS, VIEWS),
    "SAM's artefacts": (ROWS, FRAMES, LIBRARY, MATCH, ENCODE, DECODE),
    "data and SAM's artefacts": (READ, LABELS, ROWS, VIEWS, FRAMES, LIBRARY, MATCH, ENCODE, DECODE),
    "structural distillation": (ROWS, STRUCTURAL, STRUCTURAL_BACK),
}


class PartClock:
    """Seconds by part; parts nest, and each counts what no inner one does."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what the block takes to a part; a GPU's work is waited for."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Begin a part, inside the one that is open."""
        self._turn()
        self._open.append(name)

    def leave(self) -> None:
        """End the innermost part."""
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost open part."""
        synchronise()
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


@contextmanager
def timed(stepper: Stepper, clock: PartClock) -> Iterator[None]:
    """Time the functions of a training's step for as long as the block runs."""
    from mmdet.models.dense_heads.mask2former_head import Mask2FormerHead
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    places: list[tuple[Any, str, str]] = [
        (instance_dataset, "read_image", READ),
        (instance_dataset.InstanceDataset, "annotations", LABELS),
        (transforms.LoadSimilarityTargets, "transform", ROWS),
        (training_hooks._StreamIterator, "__next__", VIEWS),
        (SemiStudent, "teacher_queries", TEACHER),
        (semi_student, "to_canonical", FRAMES),
        (semi_student, "to_view", FRAMES),
        (ProposalStore, "read_masks", LIBRARY),
        (SemiStudent, "refined_labels", MATCH),
        (SemiStudent, "_image", READ),
        (Sam2Backend, "embed", ENCODE),
        (PointPromptRefiner, "_decode", DECODE),
        (Sam2Backend, "upsample", DECODE),
        (semi_student, "_quality", WATCH),
        (SemiStudent, "mixed_samples", ARP),
        (SemiStudent, "strong_inputs", STRONG),
        (mask2former.DistilledMask2Former, "loss", STUDENT),
        (ReferSet, "truth", LABELS),
        (SemiReferStudent, "teacher_logits", TEACHER),
        *((refer_labels, name, FRAMES) for name in ("to_canonical", "to_view")),
        (SemiReferStudent, "refined_labels", MATCH),
        (SemiReferStudent, "_image", READ),
        (SemiReferStudent, "_quality", WATCH),
        (SemiReferStudent, "strong_inputs", STRONG),
        *((SemiReferStudent, name, STUDENT) for name in ("_outputs", "labelled_losses", "unlabelled_losses")),
        (ReferSegmentor, "loss", STUDENT),
        (Mask2FormerHead, "_get_targets_single", ASSIGN),
        *((wrapper, "backward", BACKWARD) for wrapper in (OptimWrapper, AmpOptimWrapper)),
        (training_hooks, "update_average", EMA),
        # Of these the objects: a schedule has put its own counter over the wrapper's step.
        (stepper.model.data_preprocessor, "forward", READY),
        (stepper.runner.optim_wrapper, "step", OPTIMIZER),
        (stepper.runner.optim_wrapper, "zero_grad", OPTIMIZER),
    ]
    network = mask2former.DistilledMask2Former
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(_replaced(owner, name, _timed(getattr(owner, name), clock, part)))
        stack.enter_context(_replaced(network, "_distil", _timed_both_ways(network._distil, clock)))
        yield


def _timed(function: Callable[..., Any], clock: PartClock, part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part):
            return function(*args, **kwargs)

    return call


def _timed_both_ways(function: Callable[..., Tensor], clock: PartClock) -> Callable[..., Tensor]:
    """A loss of features: its forward, and its share of the backward, which comes first and at a stretch."""

    def call(network: Any, features: Tensor, samples: Any) -> Tensor:
        own = features.view_as(features)  # whose gradient is this loss's alone
        with clock.part(STRUCTURAL):
            loss = function(network, own, samples)
        if loss.requires_grad:
            loss.register_hook(lambda _: clock.enter(STRUCTURAL_BACK))  # type: ignore[no-untyped-call]
            own.register_hook(lambda _: clock.leave())  # type: ignore[no-untyped-call]
        return loss

    return call


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    is_own, original = name in vars(owner), getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def measure(steppers: Mapping[str, Stepper], *, warm_up: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of every part, step by step, of trainings that take turns; the order of turns changes every round.

    Returns:
        Name -> ``steps`` dicts of seconds by part; parts that did not run are left out.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steppers}
    names = list(steppers)
    for number in range(warm_up + steps):
        for name in names if number % 2 == 0 else reversed(names):
            clock, stepper = PartClock(), steppers[name]
            with timed(stepper, clock), clock.part(REST):
                stepper.step()
            if number >= warm_up:
                found[name].append(clock.seconds)
    return found


def summary(steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians and quartiles over steps, in milliseconds; shares are medians of each step's own, in percent."""
    totals = [sum(step.values()) for step in steps]

    def figures(parts: Sequence[str]) -> dict[str, Any]:
        seconds = [sum(step.get(part, 0.0) for part in parts) for step in steps]
        low, middle, high = (round(1e3 * value, 3) for value in quartiles(seconds))
        shares = [100 * part / total for part, total in zip(seconds, totals, strict=True)]
        return {"ms": middle, "ms_quartiles": [low, high], "percent": round(statistics.median(shares), 2)}

    there = [part for part in PARTS if any(part in step for step in steps)]
    return {
        "steps": len(steps),
        "step": figures(there),
        "parts": {part: figures([part]) for part in there},
        "sums": {name: figures(parts) for name, parts in SUMS.items()},
    }


def step_ratio(steps: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """How much longer steps take than another training's of the same rounds, in percent: median and quartiles."""
    pairs = zip(steps, base, strict=True)
    low, middle, high = quartiles([100 * (sum(a.values()) / sum(b.values()) - 1) for a, b in pairs])
    return {"percent": round(middle, 1), "quartiles": [round(low, 1), round(high, 1)]}


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line for each part, a column for each training; medians, quartiles and shares. Sums at the end."""
    lines = [
        "| part | " + " | ".join(summaries) + " |",
        "|---|" + "---|" * len(summaries),
    ]

    def line(title: str, found: Sequence[Mapping[str, Any] | None]) -> str:
        return f"| {title} | " + " | ".join("" if each is None else _cell(each) for each in found) + " |"

    for part in PARTS:
        found = [each["parts"].get(part) for each in summaries.values()]
        if any(found):
            lines.append(line(part, found))
    lines += [line(f"*{name}*", [each["sums"][name] for each in summaries.values()]) for name in SUMS]
    return "\n".join([*lines, line("**step**", [each["step"] for each in summaries.values()])])


def _cell(figures: Mapping[str, Any]) -> str:
    low, high = figures["ms_quartiles"]
    return f"{figures['ms']:.1f} ms ({low:.1f} to {high:.1f}), {figures['percent']:.1f} %"


def append(result: Mapping[str, Any], path: Path) -> None:
    """Add a result to a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*results, result], indent=1) + "\n")


def main() -> None:
    """Measure, print the table, append the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder of a finished demo")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--first-pass", action="store_true", help="SAM has seen none of the unlabelled images before")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--note", default="", help="kept with the figures")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a .json file; a result is appended")
    args = parser.parse_args()
    if args.steps < 1 or args.warm_up < 0:
        parser.error("--steps must be 1 or more, --warm-up 0 or more")
    torch.set_num_threads(args.threads)
    try:
        with TemporaryDirectory() as scratch:
            found = _measured(args, Path(scratch))
    except PipelineError as error:
        sys.exit(str(error))
    summaries = {name: summary(steps) for name, steps in found.items()}
    result: dict[str, Any] = {"configs": summaries}
    first = next(iter(found))
    result["longer_than_the_first"] = {name: step_ratio(found[name], found[first]) for name in list(found)[1:]}
    about = {key: value for key, value in provenance().items() if key != "command"}
    date = datetime.now(UTC).date().isoformat()
    append(
        {**result, **about, "threads": args.threads, "date": date, "note": args.note, "first_pass": args.first_pass},
        args.out,
    )
    say(table(summaries))
    for name, ratio in result["longer_than_the_first"].items():
        low, high = ratio["quartiles"]
        say(f"{name}: a step takes {ratio['percent']:+} % against one of {first} ({low:+} to {high:+})")


def _measured(args: argparse.Namespace, scratch: Path) -> dict[str, list[dict[str, float]]]:
    steppers = {
        path.stem: Stepper(demo_config(path, args.demo, further=tuple(args.cfg_options)), scratch / path.stem)
        for path in args.configs
    }
    for stepper in steppers.values():
        if not args.first_pass:
            stepper.fill_embeddings()
    return measure(steppers, warm_up=args.warm_up, steps=args.steps)


if __name__ == "__main__":
    main()
