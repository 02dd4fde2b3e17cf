"""Stands in for ``s4m-pipeline`` in tests of tables: files appear where the real one leaves them, nothing is trained.

First word: a folder. ``calls`` in it gets a line for each call; a file ``fail_<word>`` makes calls fail whose words
hold that word, ``hang_<word>`` makes them print one step and sleep, ``linger_<word>`` sleep at their end.
"""

import json
import sys
import time
from pathlib import Path


def main() -> int:
    folder, verb, *words = sys.argv[1:]
    text = " ".join([verb, *words])
    run = Path(words[words.index("--work-dir") + 1])
    with Path(folder, "calls").open("a") as file:
        file.write(f"{text}\n")
    run.mkdir(parents=True, exist_ok=True)
    options = dict(
        word.split("=", 1) for word, before in zip(words[1:], words, strict=False) if before == "--cfg-options"
    )
    if verb != "pseudo-label":
        (run / "resolved_config.py").touch()
        print("step 1/4  loss 3", flush=True)
    for path in Path(folder).glob("*_*"):
        action, _, word = path.name.partition("_")
        if action == "fail" and word in text:
            print(f"error: {word} is broken", flush=True)
            return 3
        if action == "hang" and word in text:
            time.sleep(600)
    if verb == "pseudo-label":
        quality = {"class_accuracy": 0.9, "segmentation_quality": None, "matched_share": 0.5, "found_share": 0.25}
        (run / "summary.json").write_text(json.dumps({"quality": {"before": {}, "after": quality}}))
        return 0
    seed = int(options["seed"])
    if "teacher_checkpoint" in options and not Path(options["teacher_checkpoint"], "done.json").exists():
        return 9
    ap = {"train-teacher": 0.2, "train-student": 0.4}[verb] + 0.1 * seed
    (run / "done.json").write_text(json.dumps({"iterations": 4, "validation": {"mask_AP": ap, "mask_AP50": 0.5}}))
    if any(path.name.removeprefix("linger_") in text for path in Path(folder).glob("linger_*")):
        time.sleep(3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
