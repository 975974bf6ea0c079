"""Adapters made of others, with PEFT's `add_weighted_adapter` as the oracle."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from studio.adapters.making import MAX_PARTS, Recipe, read_formula
from studio.errors import IncompatibleAdapter, InvalidInput, NameTaken, NotFound
from studio.lora.adapter import AdapterSpec, attach
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.oracle import TOKENS, load_in_peft, perturb, write
from tests.tiny import save_base

SPECS = {
    "wizard": AdapterSpec(rank=4, alpha=8.0),
    "pirate": AdapterSpec(rank=6, alpha=3.0, rslora=True, targets="attention"),
    "bird": AdapterSpec(rank=4, alpha=4.0, targets="q_proj", layers="0"),
    "fish": AdapterSpec(rank=4, alpha=8.0, targets="q_proj", layers="0"),
    "dora": AdapterSpec(method="dora", rank=4, alpha=8.0),
    "prefix": AdapterSpec(method="prefix", virtual_tokens=5),
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Studio]:
    """A studio with an adapter of each kind, none of which leaves the base as it is."""
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("studio") / "home"))
    studio.bases.fetch(str(tiny_base))
    for seed, (name, spec) in enumerate(SPECS.items()):
        attached = attach(base_model(studio), spec, start_ids=list(range(30, 60)))
        perturb(attached, seed)
        studio.import_adapter(str(write(tmp_path_factory.mktemp("made") / name, attached.weights())), name)
    yield studio
    studio.close()


def base_model(studio: Studio) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(studio.bases.path(studio.bases.get("tiny"))), dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def theirs(studio: Studio, names: list[str], weights: list[float], **how: Any) -> torch.Tensor:
    """What PEFT makes of the same adapters."""
    paths = [str(studio.adapters.path(studio.adapters.get(name))) for name in names]
    model = PeftModel.from_pretrained(base_model(studio), paths[0], adapter_name=names[0])
    for name, path in zip(names[1:], paths[1:], strict=True):
        model.load_adapter(path, name)
    model.add_weighted_adapter(names, weights, "made", **how)
    model.set_adapter("made")
    return logits(model.eval())


def ours(studio: Studio, formula: str, recipe: Recipe) -> tuple[torch.Tensor, Any]:
    """What is made here, loaded by PEFT."""
    added = studio.make_adapter(formula, "made", recipe)
    found = logits(load_in_peft(base_model(studio), studio.adapters.path(added.record)))
    studio.adapters.remove(added.record.id)
    return found, added


TWO, WEIGHTS = ["wizard", "pirate"], [0.7, -0.3]


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        (Recipe(), {"combination_type": "cat"}),
        (Recipe(rank=3), {"combination_type": "svd", "svd_rank": 3}),
        (Recipe("ties", density=0.4), {"combination_type": "ties_svd", "density": 0.4}),
        (Recipe("ties", rank=2, density=0.4), {"combination_type": "ties_svd", "density": 0.4, "svd_rank": 2}),
        (Recipe("dare", density=1.0), {"combination_type": "dare_linear_svd", "density": 1.0}),
    ],
    ids=["sum", "sum at a rank", "ties", "ties at a rank", "dare that drops nothing"],
)
@pytest.mark.filterwarnings("ignore:The density")
def test_what_is_made_computes_what_peft_makes(studio: Studio, recipe: Recipe, how: dict[str, Any]) -> None:
    found, added = ours(studio, "wizard:0.7+pirate:-0.3", recipe)
    wanted, plain = theirs(studio, TWO, WEIGHTS, **how), logits(base_model(studio))
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    exact = recipe == Recipe()
    assert added.record.rank == (10 if exact else recipe.rank or 6)
    assert ("exact sum, at rank 10" in added.notices[0]) is exact
    if recipe == Recipe(rank=3):
        exact_logits, _ = ours(studio, "wizard:0.7+pirate:-0.3", Recipe())
        assert (exact_logits - found).abs().max() > 0.01  # the smaller rank does lose something, as it says
        assert 0 < added.record.config["relative_error"] < 1


def test_dare_draws_as_peft_does(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = ours(studio, "bird:0.5+fish:1.5", Recipe("dare", density=0.3))
    other, _ = ours(studio, "bird:0.5+fish:1.5", Recipe("dare", density=0.3, seed=1))
    assert (found - other).abs().max() > 1e-3
    drawn = partial(torch.bernoulli, generator=torch.Generator().manual_seed(0))  # PEFT draws from the process's own, others from it too
    monkeypatch.setattr(torch, "bernoulli", drawn)
    wanted = theirs(studio, ["bird", "fish"], [0.5, 1.5], combination_type="dare_linear_svd", density=0.3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


def test_what_is_made_says_of_what_and_speaks_as_the_blend_does(studio: Studio) -> None:
    record = studio.make_adapter("wizard:0.7+pirate:0.3", "mix").record
    assert (record.origin, record.kind, record.source, record.rank) == ("arithmetic", "lora", "0.7 · wizard + 0.3 · pirate", 10)
    parents = [studio.adapters.get(name) for name in TWO]
    assert record.parents == [
        {"id": parent.id, "name": parent.name, "sha256": parent.sha256, "weight": weight}
        for parent, weight in zip(parents, (0.7, 0.3), strict=True)
    ]
    prompt = [{"role": "user", "content": "Hello"}]
    said = [studio.reply(prompt, voice, max_tokens=24, temperature=0.0).text for voice in ("mix", "wizard:0.7+pirate:0.3", "wizard")]
    assert said[0] == said[1] != said[2]
    again = studio.make_adapter("wizard:0.7+pirate:0.3", "mix again").record
    assert again.sha256 == record.sha256
    for one in (record, again):
        studio.adapters.remove(one.id)


@pytest.mark.parametrize(
    ("formula", "recipe", "error", "words"),
    [
        ("wizard:0.7+nobody:0.3", Recipe(), NotFound, "no adapter named 'nobody'"),
        ("wizard:x", Recipe(), InvalidInput, "The weight in 'wizard:x' is no number"),
        ("wizard:0", Recipe(), InvalidInput, "and not 0"),
        ("wizard:nan", Recipe(), InvalidInput, "should be from -10 to 10"),
        ("wizard:11", Recipe(), InvalidInput, "should be from -10 to 10"),
        ("wizard+wizard:0.3", Recipe(), InvalidInput, "'wizard' stands in the formula twice"),
        ("+".join(["wizard"] * (MAX_PARTS + 1)), Recipe(), InvalidInput, "holds 9 adapters"),
        ("wizard+dora", Recipe(), IncompatibleAdapter, "'dora' is a dora, and its lengths of rows do not add up"),
        ("prefix:0.5+wizard", Recipe(), IncompatibleAdapter, "'prefix' is a prefix, and its keys and values do not add up"),
        ("wizard+pirate", Recipe("slerp"), InvalidInput, "no method 'slerp'; choose one of sum, ties, dare"),
        ("wizard+pirate", Recipe(rank=2000), InvalidInput, "The rank 2,000 cannot be"),
        ("wizard+pirate", Recipe("ties", density=0.0), InvalidInput, "The density 0 cannot be"),
        ("", Recipe(), NotFound, "no adapter named ''"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_and_leaves_nothing(
    studio: Studio, formula: str, recipe: Recipe, error: type[Exception], words: str
) -> None:
    before = sorted(studio.adapters.folder.iterdir())
    with pytest.raises(error) as caught:
        studio.make_adapter(formula, "made", recipe)
    assert words in str(caught.value) and str(caught.value).endswith(".")
    assert sorted(studio.adapters.folder.iterdir()) == before


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(rank=2), Recipe("ties"), Recipe("dare")])
def test_numbers_that_overflow_are_told(studio: Studio, tmp_path: Path, recipe: Recipe) -> None:
    weights = studio.adapters.read(studio.adapters.get("fish"))
    huge = replace(weights, pairs={name: (torch.full_like(a, 1e30), torch.full_like(b, 1e38)) for name, (a, b) in weights.pairs.items()})
    record = studio.import_adapter(str(write(tmp_path / "huge", huge)), "huge").record
    before = sorted(studio.adapters.folder.iterdir())
    with pytest.raises(InvalidInput, match=r"not finite|too large to be combined"):
        studio.make_adapter("huge:9+bird", "made", recipe)
    assert sorted(studio.adapters.folder.iterdir()) == before
    studio.adapters.remove(record.id)


def test_a_name_may_hold_the_signs_of_a_formula(studio: Studio) -> None:
    odd = studio.make_adapter("wizard:0.5+pirate", "a+b:2").record
    assert read_formula("a+b:2", studio.adapters.get) == [(odd, 1.0)]
    assert [(record.name, weight) for record, weight in read_formula(f" {odd.id}:-2 + wizard ", studio.adapters.get)] == [
        ("a+b:2", -2.0),
        ("wizard", 1.0),
    ]
    studio.adapters.remove(odd.id)


def test_names_and_bases_are_checked(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(NameTaken):
        studio.make_adapter("wizard+pirate", "bird")
    other = studio.bases.fetch(str(save_base(tmp_path / "other", seed=1)))
    folder = studio.adapters.path(studio.adapters.get("wizard"))
    twin = studio.import_adapter([folder / "adapter_model.safetensors", folder / "adapter_config.json"], "twin", "other").record
    assert twin.base_id == other.id
    with pytest.raises(IncompatibleAdapter, match="'wizard' and 'twin' stand on different bases"):
        studio.make_adapter("wizard+twin", "made")
    studio.adapters.remove(twin.id)
