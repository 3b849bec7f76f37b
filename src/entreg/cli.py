"""The command line: `entreg train | play | export | report | recipes`. Verbs only; the work is done where it belongs.

Answers go to stdout, messages to stderr. Exit status: 0; 1 a failed run; 2 usage; 130 and 143 after Ctrl-C and SIGTERM, 141 when nobody reads stdout.
Nothing heavy is imported before a verb needs it: `entreg --help` answers without torch.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXTRA = ("gymnasium", "scipy", "tyro", "rich", "plotly", "safetensors", "imageio")  # what recipes, reports and this command line need
LANGUAGE = ("transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")  # what the language-model recipes need beside
INSTALL = "recipes and reports need: pip install 'entreg[run]'"
RECIPES = Path(__file__).parent / "recipes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path:
        sys.path.append("")  # so that `--env module:Id` finds a module of the working directory
    parser = _parser()
    if not words:
        parser.print_help()
        if importlib.util.find_spec("tyro") is None:
            print(f"\n{INSTALL}")
        return 0
    if words[0] == "train":  # every recipe has flags of its own
        return _guarded(_train, words[1:])
    arguments = parser.parse_args(words)
    return _guarded(_VERBS[arguments.verb], arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="entreg", description="Entropy regularisation: train, look at and export policies.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("train", help="train a recipe: entreg train ppo --env CartPole-v1; entreg train ppo --help for its settings")
    play = verbs.add_parser("play", help="evaluate a trained run and show it", allow_abbrev=False)
    play.add_argument("run", help="run folder, or latest")
    play.add_argument("--episodes", type=int, default=5, help="how many (default 5)")
    play.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable action, 1 samples (default 0)")
    play.add_argument("--member", type=int, help="member of a population (default: the best of the first coefficient)")
    play.add_argument("--seed", type=int, default=0, help="of the episodes (default 0)")
    play.add_argument("--save", type=Path, metavar="FILE", help="write an animation (.gif, or .mp4 where imageio has ffmpeg) instead of opening a window")
    export = verbs.add_parser("export", help="write a run's policy as ONNX, normalisation inside", allow_abbrev=False)
    export.add_argument("run", help="run folder, or latest")
    export.add_argument("--output", type=Path, metavar="FILE", help="default: policy.onnx in the run folder")
    export.add_argument("--member", type=int, help="member of a population (default: the best of the first coefficient)")
    report = verbs.add_parser("report", help="write report.html of a run again", allow_abbrev=False)
    report.add_argument("run", help="run folder, or latest")
    verbs.add_parser("recipes", help="list the recipes, each with its status")
    return parser


def _guarded(verb: Any, arguments: Any) -> int:
    """Run a verb; what the user can mend is one line on stderr, everything else a traceback."""
    try:
        status = int(verb(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere, also at exit
        return 141
    except (ValueError, ImportError, OSError, MemoryError) as error:
        if getattr(error, "entreg_mid_run", False):
            raise
        print(f"entreg: {_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _line(error: Exception) -> str:
    """What a user is told of an error."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRA:
        return f"{error.name} is not installed; {INSTALL}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in LANGUAGE:
        return f"{error.name} is not installed; language-model recipes need: pip install 'entreg[run,llm]'"
    return f"not enough memory: {error}" if isinstance(error, MemoryError) else str(error)


def recipe_names() -> list[str]:
    """The recipes there are, by file name."""
    return sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))


def _facts(name: str) -> dict[str, str]:
    """STATUS and SUMMARY of a recipe, read without importing it."""
    facts = {}
    for node in ast.parse((RECIPES / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in ("STATUS", "SUMMARY"):
            facts[node.targets[0].id] = str(ast.literal_eval(node.value))
    return facts


def _recipes(_: Any) -> int:
    for name in recipe_names():
        facts = _facts(name)
        print(f"{name:13s} {facts['STATUS']:13s} {facts['SUMMARY']}")
    return 0


def _recipe(name: str) -> Any:
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no recipe {name!r}.{hint} The recipes are {', '.join(recipe_names())}")
    return importlib.import_module(f"entreg.recipes.{name}")


def _train(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print("usage: entreg train RECIPE [flags]\n       entreg train --resume RUN\n\nrecipes (entreg train RECIPE --help lists a recipe's flags):")
        return _recipes(None)
    from entreg.flags import parse, task_of
    from entreg.rl.ranks import Follower, run_for
    from entreg.run import NonFinite, Run, exit_status

    config, settings, flags = parse(words, _recipe)
    if flags.print_config:
        from entreg.folder import describe

        print(describe(flags.recipe, task_of(config), config, settings).decode(), end="")
        return 0
    run = run_for(Run(settings, command="entreg train " + shlex.join(words)))
    try:
        summary = _recipe(flags.recipe).train(config, run)
    except NonFinite as error:
        print(f"entreg: {error}; {run.folder} keeps the last good checkpoint", file=sys.stderr)
        return 1
    except (OSError, MemoryError) as error:
        if not run.started:
            raise
        print(f"entreg: {str(error) or 'not enough memory'}; {run.folder} keeps the last good checkpoint", file=sys.stderr)
        return 1
    except ValueError as error:
        error.entreg_mid_run = run.started  # type: ignore[attr-defined]
        raise
    if not isinstance(run, Follower):
        _close(summary, flags.recipe, settings)
    return exit_status(summary)


def _close(summary: Any, recipe: str, settings: Any) -> None:
    """Write the report, say where everything is and what to do next."""
    if settings.dry_run:
        return
    from entreg import report
    from entreg.progress import closing

    print(closing(summary, recipe, as_json=settings.json, report=report.write(summary.folder)))


def _folder(name: str) -> Path:
    from entreg.folder import find_run

    return Path(find_run(name, Path("runs")))


def _play(arguments: Any) -> int:
    from entreg import policy

    for line in policy.play(
        _folder(arguments.run),
        count=arguments.episodes,
        temperature=arguments.temperature,
        member=arguments.member,
        seed=arguments.seed,
        save=arguments.save,
    ):
        print(line)
    return 0


def _export(arguments: Any) -> int:
    from entreg import policy

    print(policy.export(_folder(arguments.run), output=arguments.output, member=arguments.member))
    return 0


def _report(arguments: Any) -> int:
    from entreg import report

    print(report.write(_folder("latest") if arguments.run == "latest" else Path(arguments.run)))  # any folder with records will do
    return 0


_VERBS = {"play": _play, "export": _export, "report": _report, "recipes": _recipes}

if __name__ == "__main__":
    sys.exit(main())
