"""Training: ours against TRL on the same rows in the same run, and what each part of it costs.

Usage: python -m tests.bench.training [--quick] [--rows 48] [--held-out 48] [--repeats 1] [--trl-python PATH].
Prints one JSON object; progress goes to stderr. Every measurement is a process of its own:

- ours (`python -m studio train`, as a user types it) and TRL: one epoch, batch 8, rank 16 on all linear layers, alpha 32,
  2e-4 falling linearly without warm-up, completions alone, NF4. The rows are the same, their order is each trainer's own.
  Tokens are real ones, padding does not count.
- held_out: nats a trained token on rows that neither saw, by one evaluator for both adapters.
- products: what the matrix products alone would allow, measured before and after our run, and our share of it.
- sizes: ours on a quarter, half and all of the rows. loftq: what its start brings back of what NF4 loses.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from tests.bench.docstrings import docstring_rows
from tests.bench.rows import BATCH_SIZE, MAX_LENGTH, write_rows

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements-trl.txt")
CONFIG = {
    "epochs": 1, "held_out": 0, "batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "rank": 16, "alpha": 32,
    "learning_rate": 2e-4, "schedule": "linear", "warmup": 0, "quantization": "nf4", "seed": 0,
}  # fmt: skip
MEASURED = ("steps", "tokens", "seconds", "tokens_per_s", "peak_rss_mb", "train_loss")
Figures = dict[str, float]


def say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)


def output_of(command: list[str], **environment: str) -> Any:
    """The JSON object in the last line that a command prints."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def part(module: str, *arguments: str | Path) -> Figures:
    """What one of the benchmark's own processes measured."""
    found: Figures = output_of([sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)])
    return found


def trl_python(folder: Path) -> Path:
    """The Python of TRL's environment, which is made where it is missing or its requirements have changed."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted, stamp = REQUIREMENTS.read_text(), folder / ".ready"
    if not stamp.is_file() or stamp.read_text() != wanted:
        say("an environment for TRL (a few minutes, once)")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", REQUIREMENTS], stdout=sys.stderr, check=True
        )
        stamp.write_text(wanted)
    return python


class OurStudio:
    """The studio's command line on a home of its own.

    Args:
        home: a new folder. base: the folder of the base.
    """

    def __init__(self, home: Path, base: Path) -> None:
        self._environment = {"STUDIO_HOME": str(home)}
        self._base = self("base", "fetch", str(base))["base"]

    def __call__(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = output_of([sys.executable, "-m", "studio", *arguments, "--json"], **self._environment)
        return found

    def train(self, name: str, rows: Path) -> Figures:
        """Train an adapter of this name on the rows of a file."""
        self("dataset", "add", str(rows), "--name", name)
        options = [word for key, value in CONFIG.items() for word in ("--set", f"{key}={value}")]
        done = self("train", "--dataset", name, "--name", name, "--base", self._base, *options, "--wait")
        return {key: done[key] for key in MEASURED}

    def adapter(self, name: str) -> Path:
        """The folder of a trained adapter, in PEFT's format."""
        return Path(self("adapter", "show", name)["path"])


def median_run(runs: list[Figures]) -> Figures:
    """The run of middling speed, whole."""
    return sorted(runs, key=lambda run: run["tokens_per_s"])[len(runs) // 2]


def against_the_products(ours: Figures, products: list[Figures]) -> Figures:
    """Our speed as a share of what the products allow; the faster measurement is the limit."""
    limit = max(products, key=lambda found: found["tokens_per_s"])
    return {**limit, "our_share": ours["tokens_per_s"] / limit["tokens_per_s"]}


def growth(runs: list[Figures]) -> Figures:
    """How the cost of a token and the peak of memory grow from the smallest run to the largest; 1 is not at all."""
    first, last = runs[0], runs[-1]
    return {
        "tokens_ratio": last["tokens"] / first["tokens"],
        "seconds_per_token_ratio": first["tokens_per_s"] / last["tokens_per_s"],
        "peak_rss_ratio": last["peak_rss_mb"] / first["peak_rss_mb"],
    }


def with_share_back(losses: Figures) -> Figures:
    """LoftQ's losses with the share that comes back of what NF4 loses."""
    lost, left = losses["nf4"] - losses["bf16"], losses["nf4_loftq"] - losses["bf16"]
    return {**losses, "nats_lost": lost, "nats_back": lost - left, "share_back": 1 - left / lost}


def rounded(value: Any) -> Any:
    """The same with every number at four digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run(count: int, held_out: int, repeats: int, python: Path, folder: Path) -> dict[str, Any]:
    """All measurements, one after another."""
    base = Path(output_of([sys.executable, "-m", "studio", "base", "fetch", "--json"])["path"])
    files = {n: write_rows(folder / f"rows{n}.jsonl", docstring_rows(n)) for n in (count // 4, count // 2, count)}
    unseen = write_rows(folder / "held-out.jsonl", docstring_rows(held_out, skip=count))
    say("a studio of its own")
    studio = OurStudio(folder / "home", base)
    ours, theirs, products = [], [], []
    for attempt in range(repeats):
        say(f"matrix products, ours, and TRL on {count} rows ({attempt + 1} of {repeats})")
        products.append(part("products", base, files[count]))
        ours.append(studio.train(f"ours {attempt}", files[count]))
        products.append(part("products", base, files[count]))
        theirs.append(
            output_of([str(python), str(Path(__file__).with_name("peer_trl.py")), str(base), str(files[count]), str(folder / "trl")])
        )
    our, trl = median_run(ours), median_run(theirs)
    say("ours on fewer rows")
    sizes = [*(studio.train(f"rows {n}", files[n]) for n in (count // 4, count // 2)), our]
    say("held-out loss")
    losses = part("held_out", "adapters", base, unseen, f"trl={folder / 'trl'}", f"ours={studio.adapter('ours 0')}")
    say("the start by LoftQ")
    starts = with_share_back(part("held_out", "starts", base, unseen))
    return {
        "bench": "training",
        "rows": count,
        "ours": our,
        "trl": trl,
        "tokens_per_s_ratio": our["tokens_per_s"] / trl["tokens_per_s"],
        "peak_rss_ratio": our["peak_rss_mb"] / trl["peak_rss_mb"],
        "held_out": {"rows": held_out, **losses, "ratio": losses["ours"] / losses["trl"]},
        "products": against_the_products(our, products),
        "sizes": [{"rows": n, **run} for n, run in zip(files, sizes, strict=True)],
        "growth": growth(sizes),
        "loftq": starts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1, help="of ours and of TRL, in turn; the median run is reported")
    parser.add_argument("--quick", action="store_true", help="8 rows and 4 held out: whether it runs, not how fast")
    parser.add_argument("--trl-python", type=Path, help="Python of an environment with TRL; one is made where left out")
    chosen = parser.parse_args()
    rows, held_out = (8, 4) if chosen.quick else (chosen.rows, chosen.held_out)
    python = chosen.trl_python or trl_python(ROOT / ".venv-trl")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(rounded(run(rows, held_out, chosen.repeats, python, Path(folder)))))


if __name__ == "__main__":
    main()
