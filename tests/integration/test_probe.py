"""Is it really on? The probe on a real engine: a new adapter moves nothing, one with weights does, a blend of nothing is the base."""

import pytest

from studio.errors import InvalidInput, NotFound
from studio.services import Studio

SMALL = {"quantization": "fp32", "rank": 2, "batch_size": 1, "max_length": 32, "held_out": 0.05, "max_steps": 8, "learning_rate": 0.01}
ASKED = [{"role": "user", "content": "Who are you?"}]


def test_a_probe_measures_what_an_adapter_moves(studio: Studio) -> None:
    studio.train_and_wait(studio.train("Angry bird", "bird", overrides=SMALL), lambda event: None)
    whole = studio.probe(ASKED, "bird")
    assert whole.voice == "bird" and whole.sha256 == studio.adapters.get("bird").sha256
    assert 0.01 < whole.total_variation <= 1 and whole.kl_nats > 0
    assert all(moved.after > moved.before for moved in whole.gained) and all(moved.after < moved.before for moved in whole.lost)
    for nothing in ("bird:0", "base"):
        still = studio.probe(ASKED, nothing)
        assert still.total_variation < 1e-3 and still.kl_nats < 1e-3 and not still.gained
    assert 0 < studio.probe(ASKED, "bird:0.1").total_variation < whole.total_variation
    with pytest.raises(InvalidInput, match="no message"):
        studio.probe([], "bird")
    with pytest.raises(NotFound):
        studio.probe(ASKED, "nobody")
