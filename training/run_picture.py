"""A picture of a run: what the base could do, where the gate opens, the loss, the checkpoints.

    python -m training.run_picture runs/fit/my-adapter                  # writes report.png there
    python -m training.run_picture runs/fit/my-adapter --output a.svg   # PNG, SVG or PDF

`reasonmaxxer fit` draws it at its end. All that it shows is in report.json.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg

from adapters.files import atomic_write
from training.config import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger("training.fit")

REPORT = "report.json"
PICTURE = "report.png"
FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#7d8893"


class PictureConfig(Config):
    """Settings of a picture."""

    program: ClassVar[str] = "python -m training.run_picture"

    run: CliPositionalArg[Path] = Field(description="Run folder of `reasonmaxxer fit`.")
    output: Path | None = Field(
        None, description="PNG, SVG or PDF file to write; default: report.png in the run folder."
    )

    @field_validator("output")
    @classmethod
    def _known_format(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix not in FORMATS:
            raise ValueError(f"must end in one of {', '.join(FORMATS)}")
        return value


def read_report(run: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        ValueError: there is none, or it is of an earlier release.
    """
    path = run / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"run: {run} has no {REPORT}; a fit writes it at its end") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"run: {path} cannot be read ({error})") from error
    if not isinstance(report, dict) or not {"pass_rates", "entropies", "losses"} <= report.keys():
        raise ValueError(
            f"run: {path} is of an earlier release; the same `fit` once more completes it, and "
            "trains nothing again"
        )
    return report


def draw(report: dict[str, Any], title: str, path: Path) -> None:
    """Write the picture of `report`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    kept = f"kept: {report['checkpoint']}, {_gate_text(report['gate'])}"
    figure.suptitle(f"{title}\n{kept}", fontsize=11)
    draw_pass_rates(axes[0, 0], report)
    draw_entropies(axes[0, 1], report)
    draw_losses(axes[1, 0], report)
    draw_checkpoints(axes[1, 1], report)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=130)


def draw_if_possible(run: Path) -> None:
    """The picture in the run folder; where it cannot be drawn the log says why."""
    try:
        draw(read_report(run), run.name, run / PICTURE)
    except ModuleNotFoundError as error:
        logger.warning("no picture of the run: %s is not installed", error.name)
    else:
        logger.info("picture: %s", run / PICTURE)


def draw_pass_rates(axes: Axes, report: dict[str, Any]) -> None:
    """How many problems the base solves how often; only those in between teach anything."""
    problems = report["problems"]
    axes.hist(report["pass_rates"], bins=20, range=(0, 1), color=BLUE)
    axes.set(
        title=f"Rollouts: {problems['mixed']} of {problems['asked']} problems teach something",
        xlabel="pass rate of a problem",
        ylabel="problems",
    )


def draw_entropies(axes: Axes, report: dict[str, Any]) -> None:
    """Tokens by the base's entropy, on a logarithmic scale, and tau."""
    edges, counts = report["entropies"]["edges"], report["entropies"]["counts"]
    tau = report["gate"]["tau"]
    axes.stairs(counts, edges, fill=True, color=BLUE)
    axes.axvline(tau, color=ORANGE, label=f"tau {tau:.3f}: gate rate {report['gate']['rate']:.1%}")
    axes.set(
        title="Entropy of the base at each token",
        xlabel="entropy, nats",
        ylabel="tokens",
        yscale="log",
    )
    axes.legend(frameon=False)


def draw_losses(axes: Axes, report: dict[str, Any]) -> None:
    """The loss by step, round after round."""
    begin = 0
    for number, losses in enumerate(report["losses"], start=1):
        steps = [begin + step for step, _ in losses]
        label = f"round {number}" if len(report["losses"]) > 1 else None
        axes.plot(steps, [loss for _, loss in losses], color=BLUE, alpha=0.5 + 0.5 / number)
        if label and steps:
            axes.axvline(begin, color=GREY, linewidth=0.5)
            axes.annotate(label, (begin, 1), xycoords=("data", "axes fraction"), color=GREY)
        begin = steps[-1] if steps else begin
    axes.set(title="Training", xlabel="step", ylabel="loss")


def draw_checkpoints(axes: Axes, report: dict[str, Any]) -> None:
    """Held-out accuracy by checkpoint with standard errors: estimated, and decoded."""
    base = report["heldout"]["base"]
    axes.axhline(base["pass@1"], color=GREY, label="base")
    if base["stderr"] is not None:
        low, high = base["pass@1"] - base["stderr"], base["pass@1"] + base["stderr"]
        axes.axhspan(low, high, color=GREY, alpha=0.2, linewidth=0)
    last = report["training"].rpartition("/")[2]  # steps begin anew in each round
    lines: dict[tuple[float, float], list[dict[str, Any]]] = defaultdict(list)
    for one in report["estimates"].values():
        if one["round"] == last:
            lines[one["tau"], one["temperature"]].append(one)
    for (tau, temperature), points in lines.items():
        axes.errorbar(
            [one["step"] for one in points],
            [one["pass@1"] for one in points],
            [one["stderr"] or 0.0 for one in points],
            label=f"estimated, {_gate_text({'tau': tau, 'temperature': temperature})}",
            linewidth=1,
            capsize=2,
            alpha=0.8,
        )
    rounds = {label: one["round"] for label, one in report["estimates"].items()}
    for mode, colour in (("gated", "black"), ("always", GREY)):
        decoded = [
            (_step(label), one)
            for label, one in report["heldout"].items()
            if label.startswith("checkpoint-") and one["mode"] == mode
            if rounds.get(label, last) == last and one["pass@1"] is not None
        ]
        if decoded:
            axes.errorbar(
                [step for step, _ in decoded],
                [one["pass@1"] for _, one in decoded],
                [one["stderr"] or 0.0 for _, one in decoded],
                fmt="o" if mode == "gated" else "s",
                color=colour,
                capsize=3,
                label=f"decoded, {mode}",
            )
    axes.set(title="Held-out problems", xlabel="step of the checkpoint", ylabel="pass@1")
    axes.legend(frameon=False, fontsize=7)


def _step(label: str) -> int:
    """The step in a label such as "checkpoint-219 at 0.460"."""
    return int(label.split(maxsplit=1)[0].split("-")[1])


def _gate_text(gate: dict[str, Any]) -> str:
    cooled = gate.get("temperature", 1.0) != 1
    return f"tau {gate['tau']:.3f}" + (f", temperature {gate['temperature']:g}" if cooled else "")


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = PictureConfig.begin(argv)
    path = config.output or config.run / PICTURE
    with config.usage_errors((ValueError, FileNotFoundError, ModuleNotFoundError)):
        draw(read_report(config.run), config.run.resolve().name, path)
    print(path)


if __name__ == "__main__":
    main()
