"""Speed as ratios: ``make bench`` (or ``python -m jobs.bench [NAME ...]``) appends to ``docs/results/bench.jsonl``.

A case does one thing in two ways, ours and the one a user would take otherwise, and first checks that both give the
same. The two are timed in turn within one process, so that a busy machine slows both; only the ratio is worth keeping.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs.bench import generators, matching, mutual_learning, ray_overhead, steps, stores, student_labels, targets
from jobs.bench.cases import Case, Timing
from jobs.provenance import provenance
from pipeline.errors import ConfigError, EnvironmentProblemError

RESULTS = Path(__file__).parents[2] / "docs/results/bench.jsonl"


BENCHES: dict[str, Callable[[Path], Iterable[Case]]] = {
    **generators.BENCHES,
    **targets.BENCHES,
    **steps.BENCHES,
    **mutual_learning.BENCHES,
    **student_labels.BENCHES,
    "ray_overhead": ray_overhead.ray_overhead,
    "match_1x200_1080p": matching.match_1x200_1080p,
    "library_read": matching.library_read,
    "store_open_1e6": stores.store_open_1e6,
}
"""By name; each builds its cases, in a folder that is deleted afterwards."""


def compare(case: Case, *, rounds: int, clock: Callable[[], float] | None = None) -> Timing:
    """Check that both ways agree, then time them in turn.

    Args:
        case: What to time.
        rounds: How often; the way that goes first changes from round to round.
        clock: Seconds; the case's own by default.

    Raises:
        AssertionError: the two ways do not give the same.
    """
    case.check(case.ours(), case.other())
    clock = clock or case.clock
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
    case: Case
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
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a .jsonl file; lines are appended")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="time nothing; write what --out holds as Markdown")
    args = parser.parse_args()
    if args.tables is not None:
        args.tables.write_text(tables([json.loads(line) for line in args.out.read_text().splitlines()]))
        return
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
            try:
                run(name, Path(scratch), args.out, rounds=args.rounds, machine=machine)
            except EnvironmentProblemError as error:
                if args.names:
                    sys.exit(str(error))
                print(f"{name}: left out: {error.what}", flush=True)


def run(name: str, scratch: Path, out: Path, *, rounds: int, machine: Mapping[str, Any]) -> None:
    """Time the cases of one bench, tell and append each line as it comes."""
    for case in BENCHES[name](scratch):
        line = Line(name, case, case.timing or compare(case, rounds=rounds), machine)
        print(line.text(), flush=True)
        with out.open("a") as file:
            file.write(json.dumps(line.to_json()) + "\n")


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the newest line of every case, by bench."""
    newest = {(line["name"], line["other"], _case(line)): line for line in lines}
    text = ["# Benchmarks", "", "Made by `python -m jobs.bench --tables FILE` from `docs/results/bench.jsonl`.", ""]
    for name in dict.fromkeys(key[0] for key in newest):
        rows = [line for key, line in newest.items() if key[0] == name]
        text += [f"## {name}", "", "| case | ours | instead | ratio (quartiles) | rounds |", "|---|---|---|---|---|"]
        for line in rows:
            low, high = line["ratio_quartiles"]
            text.append(
                f"| {_case(line)} | {line['ours_ms']:.4g} ms | {line['other']}: {line['other_ms']:.4g} ms "
                f"| {line['ratio']:.3g} ({low:.3g} to {high:.3g}) | {line['rounds']:.0f} |"
            )
        about = rows[-1]
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        text += ["", f"{about['date']}, {about['machine']}, {about['threads']} thread of torch; {versions}.", ""]
    return "\n".join(text)


def _case(line: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in line["sizes"].items())


def chosen(names: Sequence[str]) -> list[str]:
    """The benches asked for, all if none is; ConfigError for an unknown one."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ConfigError("no such bench", expected=f"one of {', '.join(BENCHES)}", got=unknown[0])
    return list(names) or list(BENCHES)
