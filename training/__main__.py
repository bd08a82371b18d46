"""python -m training fit | evaluate | compare | report | calibrate | static"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.card import BundleError
from training import settings
from training.errors import TrainingError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        _COMMANDS[flags.command](flags)
    except (TrainingError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumable = flags.command in ("fit", "static")
        print("interrupted" + ": continue with --resume" * resumable, file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Train and measure bundles."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    settings.add_flags(commands.add_parser("fit", help="train a bundle from labelled images"))
    _add_static_flags(commands.add_parser("static", help="train a static rival of a bundle"))
    evaluating = commands.add_parser(
        "evaluate", help="what each budget spends and keeps on test images"
    )
    evaluating.add_argument("bundle", type=Path, help="directory of the bundle")
    comparing = commands.add_parser("compare", help="ours beside its rivals at equal compute")
    comparing.add_argument(
        "bundle", type=Path, nargs="+", help="directories of bundles of different seeds"
    )
    comparing.add_argument(
        "--others", type=Path, nargs="+", default=[], help="bundles of another kind"
    )
    comparing.add_argument(
        "--static", type=Path, nargs="+", default=[], help="static.json of static rivals"
    )
    comparing.add_argument("--seed", type=int, default=0, help="of the rivals' lots")
    reporting = commands.add_parser("report", help="pictures of where the compute goes, and why")
    reporting.add_argument("bundle", type=Path, help="directory of the bundle")
    reporting.add_argument(
        "--images", type=int, default=0, help="how many test images, drawn by lot; 0 for all"
    )
    reporting.add_argument("--seed", type=int, default=0, help="of all that is drawn by lot")
    reporting.add_argument(
        "--log",
        type=Path,
        help="log.jsonl of the run that trained it, to draw how its agent learnt",
    )
    for parser_of_images in (evaluating, comparing, reporting):
        _add_measuring_flags(parser_of_images)
    calibrating = commands.add_parser(
        "calibrate", help="a bundle's penalties anew, on the images that it was trained without"
    )
    calibrating.add_argument("bundle", type=Path, help="directory of the bundle")
    calibrating.add_argument("--data", required=True, help="as it was given to fit")
    calibrating.add_argument(
        "--points", type=int, default=0,
        help="penalties to measure; 0 for as many as it was trained to have",
    )  # fmt: skip
    calibrating.add_argument("--out", type=Path, required=True, help="directory of the new bundle")
    _add_machine_flags(calibrating)
    return parser


def _add_measuring_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="as for fit; its test images are used")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.15, 0.25, 0.4, 0.6, 0.8],
        help="mean shares of the full compute",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the report; default runs/<bundle>")
    _add_machine_flags(parser)


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for torch's default")


def _add_static_flags(parser: argparse.ArgumentParser) -> None:
    settings.add_flags(parser)
    parser.add_argument(
        "--method", required=True, choices=["plain", "l1", "searched", "torch-pruning", "narrow"],
        help="the full network, pruned from it in one of three ways, or narrow from the beginning",
    )  # fmt: skip
    parser.add_argument(
        "--fraction", type=float, help="most MACs, as a share of the full network's"
    )
    parser.add_argument(
        "--start", type=Path, help="bundle, or folder of the plain network: start and teacher"
    )
    parser.add_argument(
        "--widths", type=Path, help="bundle whose best path says how wide the layers searched are"
    )
    parser.add_argument(
        "--criterion", choices=["taylor", "magnitude", "lamp", "bn-scale"],
        help="what Torch-Pruning ranks channels by; default taylor",
    )  # fmt: skip


def _fit(flags: argparse.Namespace) -> None:
    from training.fit import fit

    fit(settings.from_flags(flags), resume=flags.resume)


def _evaluate(flags: argparse.Namespace) -> None:
    from training.evaluation import evaluate

    evaluate(flags.bundle, flags.data, flags.budgets, *_places(flags, flags.bundle))


def _compare(flags: argparse.Namespace) -> None:
    from training.compare import compare

    compare(
        flags.bundle,
        flags.data,
        flags.budgets,
        *_places(flags, flags.bundle[0]),
        flags.seed,
        others=flags.others,
        static=flags.static,
    )


def _report(flags: argparse.Namespace) -> None:
    from training.report import report

    cache, out = _places(flags, flags.bundle)
    out = flags.out or out / "report"
    report(flags.bundle, flags.data, flags.budgets, cache, out, flags.images, flags.seed, flags.log)


def _calibrate(flags: argparse.Namespace) -> None:
    from training.recalibrate import recalibrate

    cache, out = _places(flags, flags.bundle)
    recalibrate(flags.bundle, flags.data, flags.points, cache, out)


def _static(flags: argparse.Namespace) -> None:
    from training.static import Wanted, static

    wanted = Wanted(flags.method, flags.fraction, flags.start, flags.criterion, flags.widths)
    static(settings.from_flags(flags), wanted, resume=flags.resume)


def _places(flags: argparse.Namespace, bundle: Path) -> tuple[Path, Path]:
    """Folders of decoded images and of the report."""
    import torch

    from training.config import Config

    if flags.threads:
        torch.set_num_threads(flags.threads)
    return flags.cache or Config().cache_dir, flags.out or Path("runs") / bundle.name


_COMMANDS = {
    "fit": _fit,
    "evaluate": _evaluate,
    "compare": _compare,
    "report": _report,
    "calibrate": _calibrate,
    "static": _static,
}

if __name__ == "__main__":
    sys.exit(main())
