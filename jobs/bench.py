"""Speed as ratios: ``make bench`` (or ``python -m jobs.bench [NAME ...]``) appends to ``docs/results/bench.jsonl``.

A case does one thing in two ways, ours and the one a user would take otherwise, and first checks that both give the
same. The two are timed in turn within one process, so that a busy machine slows both; only the ratio is worth keeping.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs import bench_cases
from jobs.training import provenance
from pipeline.errors import ConfigError

RESULTS = Path(__file__).parents[1] / "docs/results/bench.jsonl"


@dataclass(frozen=True)
class Timing:
    """What rounds of a case took, in seconds a call."""

    ours: Sequence[float]
    other: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """How many times longer the other way took, round by round."""
        return [other / ours for ours, other in zip(self.ours, self.other, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Medians, and the quartiles of the ratio."""
        low, middle, high = quartiles(self.ratios)
        return {
            "ours_ms": 1e3 * statistics.median(self.ours),
            "other_ms": 1e3 * statistics.median(self.other),
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "rounds": len(self.ours),
        }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value thrice."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def compare(case: bench_cases.Case, *, rounds: int, clock: Callable[[], float] = time.perf_counter) -> Timing:
    """Check that both ways agree, then time them in turn.

    Args:
        case: What to time.
        rounds: How often; the way that goes first changes from round to round.
        clock: Seconds.

    Raises:
        AssertionError: the two ways do not give the same.
    """
    case.check(case.ours(), case.other())
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    for number in range(rounds):
        for name in ("ours", "other") if number % 2 == 0 else ("other", "ours"):
            call = getattr(case, name)
            started = clock()
            for _ in range(case.calls):
                call()
            seconds[name].append((clock() - started) / case.calls)
    return Timing(seconds["ours"], seconds["other"])


@dataclass(frozen=True)
class Line:
    """One line of the results."""

    name: str
    case: bench_cases.Case
    timing: Timing
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, figures with four digits."""
        figures = {
            key: [float(f"{v:.4g}") for v in value] if isinstance(value, list) else float(f"{value:.4g}")
            for key, value in self.timing.to_json().items()
        }
        return {
            "name": self.name,
            "sizes": dict(self.case.sizes),
            "other": self.case.other_name,
            **figures,
            "calls_a_round": self.case.calls,
            **self.machine,
        }

    def text(self) -> str:
        """The line as a person reads it."""
        values = self.to_json()
        sizes = ", ".join(f"{key} {value}" for key, value in values["sizes"].items())
        low, high = values["ratio_quartiles"]
        return (
            f"{self.name} ({sizes}): {values['ours_ms']:.4g} ms, {self.case.other_name} {values['other_ms']:.4g} ms, "
            f"ratio {values['ratio']:.3g} ({low:.3g} to {high:.3g} over {len(self.timing.ours)} rounds)"
        )


def main() -> None:
    """Parse the command line, run the cases, append their lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(bench_cases.BENCHES)}; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a .jsonl file; lines are appended")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    torch.set_num_threads(args.threads)
    try:
        names = chosen(args.names)
    except ConfigError as error:
        sys.exit(str(error))
    machine = {
        **{key: value for key, value in provenance().items() if key != "command"},
        "threads": args.threads,
        "date": datetime.now(UTC).date().isoformat(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        with TemporaryDirectory() as scratch:
            for case in bench_cases.BENCHES[name](Path(scratch)):
                line = Line(name, case, compare(case, rounds=args.rounds), machine)
                print(line.text(), flush=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(line.to_json()) + "\n")


def chosen(names: Sequence[str]) -> list[str]:
    """The benches asked for, all if none is; ConfigError for an unknown one."""
    unknown = [name for name in names if name not in bench_cases.BENCHES]
    if unknown:
        raise ConfigError("no such bench", expected=f"one of {', '.join(bench_cases.BENCHES)}", got=unknown[0])
    return list(names) or list(bench_cases.BENCHES)


if __name__ == "__main__":
    main()
