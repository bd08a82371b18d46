"""python -m training fit | evaluate | compare"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.bundle import BundleError
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
        print("interrupted: continue with --resume", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Train and measure bundles."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    settings.add_flags(commands.add_parser("fit", help="train a bundle from labelled images"))
    measuring = {
        "evaluate": "what each budget spends and keeps on test images",
        "compare": "ours beside uniform widths, random paths and its own paths shuffled",
    }
    for name, purpose in measuring.items():
        _add_measuring_flags(commands.add_parser(name, help=purpose))
    return parser


def _add_measuring_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="directory of the bundle")
    parser.add_argument("--data", required=True, help="as for fit; its test images are used")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.15, 0.25, 0.4, 0.6, 0.8],
        help="mean shares of the full compute",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the report; default runs/<bundle>")
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for torch's default")
    parser.add_argument("--seed", type=int, default=0, help="of the rivals' lots")


def _fit(flags: argparse.Namespace) -> None:
    from training.fit import fit

    fit(settings.from_flags(flags), resume=flags.resume)


def _evaluate(flags: argparse.Namespace) -> None:
    from training.evaluation import evaluate

    evaluate(flags.bundle, flags.data, flags.budgets, *_places(flags))


def _compare(flags: argparse.Namespace) -> None:
    from training.compare import compare

    compare(flags.bundle, flags.data, flags.budgets, *_places(flags), flags.seed)


def _places(flags: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of decoded images and of the report."""
    import torch

    from training.config import Config

    if flags.threads:
        torch.set_num_threads(flags.threads)
    return flags.cache or Config().cache_dir, flags.out or Path("runs") / flags.bundle.name


_COMMANDS = {"fit": _fit, "evaluate": _evaluate, "compare": _compare}

if __name__ == "__main__":
    sys.exit(main())
