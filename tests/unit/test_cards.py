"""Cards: metadata that the Hub takes, and names that stay text in Markdown."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from storage.records import AdapterRecord
from studio.adapters import cards
from studio.adapters.finding import checked_tag, without_metadata
from studio.errors import InvalidInput
from studio.training.config import make_config
from tests.records import ADAPTER, BASE, DATASET

EVIL = "<img src=x onerror=alert(1)> [x](javascript:1) *b* | `c`\n# d: - 'e'\n---\n"
CONFIG = {**make_config("quick").model_dump(), "seed": 7}
METRICS = {"eval_loss_before": 3.41, "eval_loss": 1.97, "perplexity": 7.17}
TRAINED = replace(ADAPTER, config=CONFIG, metrics=METRICS, tags=["birds"], licence="apache-2.0")
MADE = replace(
    ADAPTER, origin="arithmetic", source="bird:0.7+owl:0.3", parents=[{"id": "a2", "name": EVIL, "sha256": "s" * 64, "weight": 0.7}]
)
HUB_BASE = replace(BASE, source="hub:owner/model-1@abc")


@pytest.mark.parametrize(
    "record",
    [
        TRAINED,
        MADE,
        replace(TRAINED, origin="import", source=EVIL),
        replace(TRAINED, name=EVIL, licence=EVIL, tags=[EVIL.replace(",", "")]),
    ],
)
def test_the_metadata_of_every_card_are_valid_and_say_what_is_known(record: AdapterRecord) -> None:
    card = ModelCard(cards.full_card(record, HUB_BASE, DATASET), ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert data["base_model"] == "owner/model-1" and data["library_name"] == "peft" and data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["lora", *record.tags] and data["datasets"] == ["birds"]
    assert data.get("license", "") == (record.licence if record.licence in ("", "apache-2.0") else "other")
    assert data.get("license_name", record.licence) == record.licence
    assert card.text.strip() == cards.body(record, HUB_BASE, DATASET)


def test_a_card_is_made_from_what_is_known() -> None:
    card = cards.made(TRAINED, BASE, replace(DATASET, version=3))
    for told in (
        "# bird",
        "A LoRA adapter of rank 8 for **tiny**",
        "**birds**, version 3, 2 rows",
        "seed 0",
        "| rank | 8 |",
        "apache\\-2.0",
    ):
        assert told in card
    assert "| held-out loss, nats a token | 3.410 | 1.970 |" in card and "| neftune |" not in card and cards.INTENDED in card
    assert "a dataset that was deleted since" in cards.made(TRAINED, None, None) and "a base that was deleted since" in cards.made(
        TRAINED, None, None
    )
    made = cards.made(MADE, BASE, None)
    assert "Made of others from bird:0.7\\+owl:0.3" in made and "\n- 0.7 · " in made and "Training" not in made


def test_what_a_person_wrote_takes_the_place_of_what_is_made() -> None:
    assert cards.body(replace(TRAINED, card="Mine."), BASE, DATASET) == "Mine."
    assert cards.full_card(replace(TRAINED, card="Mine."), BASE, DATASET).endswith("---\n\nMine.\n")


def test_names_are_shown_and_never_obeyed() -> None:
    plain = cards.plain(EVIL)
    assert "<" not in plain and "\n" not in plain and r"\[x\]\(" in plain and r"\*b\*" in plain and r"\`c\`" in plain and r"\|" in plain
    for record in (replace(TRAINED, name=EVIL, licence=EVIL), replace(MADE, source=EVIL), replace(TRAINED, config={"targets": EVIL})):
        assert "<img" not in cards.made(record, replace(BASE, name=EVIL, source=EVIL), replace(DATASET, name=EVIL))


@pytest.mark.parametrize(
    ("source", "base"), [("hub:a/b@c", "a/b"), ("folder:tiny", "tiny"), ("wheel:llm==1", cards.STARTER_REPOSITORY), ("hub:<x>@c", "tiny")]
)
def test_the_base_is_named_as_the_hub_names_it(source: str, base: str) -> None:
    assert cards.repository_of(replace(BASE, source=source)) == base


@pytest.mark.parametrize(
    ("text", "body"), [("---\na: b\n---\n# T", "# T"), ("# T\n---\nx", "# T\n---\nx"), ("---\nnever closed", "---\nnever closed"), ("", "")]
)
def test_metadata_at_the_top_of_a_card_are_left_out(text: str, body: str) -> None:
    assert without_metadata(text) == body


def test_tags_are_small_and_plain() -> None:
    assert checked_tag("  Für   Kinder ") == "für kinder"
    for wrong in ("", "  ", "a,b", "x" * 41, "a\0b", "a\u202eb"):
        with pytest.raises(InvalidInput, match=r"^The tag .*[.]$"):
            checked_tag(wrong)
