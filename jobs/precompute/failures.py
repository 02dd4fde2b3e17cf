"""What failed, an image or the machine under it? A failure of the machine ends the run, and no image pays for it."""

import re
from dataclasses import dataclass

import torch

from pipeline.errors import EnvironmentProblemError, PipelineError

_DEVICE = re.compile(r"CUDA error|CUDA driver error|CUDNN|CUBLAS_STATUS|CUSOLVER_STATUS|CUSPARSE_STATUS|CUFFT_", re.I)
_NUMBER = re.compile(r"\d+(\.\d+)?")
MOST_ALIKE = 10
"""Images one after the other that may fail for one reason."""


@dataclass
class FailureStreak:
    """Images one after the other, without one that was done between them, that failed for one and the same reason.

    Numbers in a reason do not count: a lack of memory says each time how much is missing.
    """

    most: int = MOST_ALIKE
    """So many are the machine's fault."""
    kind: str = ""
    """The reason, less its numbers."""
    count: int = 0

    def add(self, reason: str) -> None:
        """Note the next image that failed, for a reason other than itself.

        Raises:
            EnvironmentProblemError: It is one too many.
        """
        kind = _NUMBER.sub("N", reason)
        self.count = self.count + 1 if kind == self.kind else 1
        self.kind = kind
        if self.count >= self.most:
            raise EnvironmentProblemError(
                f"{self.count} images one after the other failed for one reason",
                expected="images that can be done, or that fail for reasons of their own",
                got=reason,
                fix="mend the machine (s4m-pipeline doctor) and run the same command again, with --cfg-options "
                "retry_quarantined=True for images that were set aside before; if the images are at fault, allow more "
                "with --cfg-options max_alike_failures=N",
            )

    def end(self) -> None:
        """An image was done."""
        self.kind, self.count = "", 0


def refuse_device_failure(error: Exception) -> None:
    """Tell a GPU or one of its libraries that failed from an image that did.

    A CUDA context is dead after most of these failures, and every later image of the process would fail as well. A
    lack of memory is no such failure: it depends on the image.

    Raises:
        EnvironmentProblemError: The device failed.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return
    # The class is torch's since 2.8; before, and for the libraries beside CUDA itself, the text tells.
    accelerator: type[Exception] | None = getattr(torch, "AcceleratorError", None)
    if (accelerator and isinstance(error, accelerator)) or (isinstance(error, RuntimeError) and _in_words(error)):
        raise EnvironmentProblemError(
            "the device failed",
            got=one_line(error),
            fix="look at the GPU (nvidia-smi, s4m-pipeline doctor), then run the same command again: it does what is "
            "missing; or use --cfg-options sam.device=cpu --cfg-options sam.precision=fp32",
        ) from error


def _in_words(error: RuntimeError) -> bool:
    return _DEVICE.search(str(error)) is not None


def one_line(error: Exception) -> str:
    """An error as the reason of an outcome."""
    if isinstance(error, PipelineError):
        return error.what + (f" ({error.got})" if error.got is not None else "")
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else 'no message'}"
