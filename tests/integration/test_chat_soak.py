"""Sixteen clients with random adapters, lengths and cancels for twenty minutes: memory does not grow and nobody is stuck."""

import random
import threading
import time
from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM

from studio.chat.backend import load_engine
from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import Capacity
from studio.chat.sampling import Sampling
from studio.datasets.rendering import prompt_ids
from tests.integration.test_chat_engine import PROMPTS, random_adapter, source

CLIENTS, ADAPTERS, WARM_UP_S, SOAK_S = 16, 40, 120, 1200
PATIENCE_S, MAX_GROWTH = 60, 1.05


@pytest.mark.soak
def test_twenty_minutes_of_sixteen_clients_leave_memory_as_it_was(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    pool = [source(random_adapter(model, seed, 1 + seed % 30), f"soak-{seed}") for seed in range(ADAPTERS)]
    engine = load_engine(tiny_base, "fp32", Capacity(slots=6, max_batch=8, host_mb=2, kv_mb=2))
    checksum, process = engine.checksum(), psutil.Process()
    over, stuck, asked = threading.Event(), list[str](), [0] * CLIENTS

    def client(number: int) -> None:
        chance = random.Random(number)
        while not over.is_set():
            ids = prompt_ids(engine.tokenizer, [{"role": "user", "content": chance.choice(PROMPTS) * chance.randint(1, 4)}])
            parts = tuple(Part(one, chance.choice([1.0, 0.5])) for one in chance.sample(pool, chance.choice([0, 1, 1, 1, 2])))
            sampling = Sampling(max_tokens=chance.randint(1, 60), temperature=chance.choice([0.0, 1.0]))
            ticket = engine.submit(ids, sampling, Voice(parts) if parts else BASE, user=str(number % 5))
            watch = threading.Timer(PATIENCE_S, stuck.append, [f"client {number}"])
            watch.start()
            if chance.random() < 0.2:
                time.sleep(chance.random() / 20)
                ticket.cancel()
            ticket.text()
            watch.cancel()
            asked[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_S)
    before, seen = process.memory_info().rss, list[int]()
    end = time.monotonic() + SOAK_S
    while time.monotonic() < end and not stuck:
        time.sleep(10)
        seen.append(process.memory_info().rss)
    over.set()
    for thread in threads:
        thread.join()
    print(f"{sum(asked)} requests; {before >> 20} MB after the warm-up, {max(seen[-6:]) >> 20} MB at the end")
    assert stuck == [] and not engine.busy and min(asked) > 100
    assert max(seen[-6:]) <= before * MAX_GROWTH
    assert engine.checksum() == checksum
    engine.close()
