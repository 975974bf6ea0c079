"""The path on CUDA. Never run where there is no GPU: `make test` leaves these out by their marker."""

from pathlib import Path

import pytest
import torch

from studio.bases.loading import load_model
from studio.chat.engine import AdapterSource
from studio.chat.sampling import Sampling
from studio.chat.service import load_engine, prompt_ids
from studio.training.config import make_config
from studio.training.loop import Trainer
from tests.integration.test_training import examples

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_an_adapter_trains_and_speaks_on_cuda(tiny_base: Path, quantization: str) -> None:
    assert torch.cuda.is_available()
    config = make_config("quick", {"rank": 4, "epochs": 10, "learning_rate": 0.01, "quantization": quantization})
    trainer = Trainer(load_model(tiny_base, quantization), examples(), config, lambda kind, **data: None)
    outcome = trainer.fit()
    assert outcome.eval_loss_before is not None and outcome.train_loss < outcome.eval_loss_before
    engine = load_engine(tiny_base, quantization, slots=2, max_batch=4)
    weights = trainer.weights()
    ids = prompt_ids(engine.tokenizer, [{"role": "user", "content": "Hello"}])
    greedy = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    base = engine.submit(ids, greedy).text()
    assert engine.submit(ids, greedy, AdapterSource("a", lambda: weights)).text() != base
    assert engine.submit(ids, greedy).text() == base
    engine.close()
