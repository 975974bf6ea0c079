"""`adapter export|push|xray|compare` on the command line, the Hub being a small server that the real client speaks to."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from storage.catalog import Search
from studio.adapters.exporting import Wish
from studio.adapters.pushing import Pusher
from studio.errors import BaseUnavailable, InvalidInput, NotFound
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.linear import dense_weight
from studio.services import Studio
from tests.commands import Shell
from tests.conftest import tiny_settings
from tests.oracle import perturb, write
from tests.tiny import make_model

TOKEN = "hf_secretsecretsecret"
SPECS = {
    "wizard": AdapterSpec(rank=4, alpha=8.0),
    "pirate": AdapterSpec(rank=6, alpha=6.0, targets="attention"),
    "long": AdapterSpec(method="dora", rank=4),
    "prefix": AdapterSpec(method="prefix", virtual_tokens=5),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A home with an adapter of each kind."""
    home = tmp_path_factory.mktemp("stocked") / "home"
    studio = Studio(tiny_settings(home))
    studio.bases.fetch(str(tiny_base))
    for seed, (name, spec) in enumerate(SPECS.items()):
        attached = attach(make_model(0, 600), spec, start_ids=list(range(30, 60)))
        perturb(attached, seed)
        studio.import_adapter(str(write(tmp_path_factory.mktemp("made") / name, attached.weights())), name)
    studio.close()
    return home


@pytest.fixture
def shell(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(home, monkeypatch, capfd)


class Hub(ThreadingHTTPServer):
    """Takes commits as the Hub does: what is asked of it, and what it has got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.status = 200


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.status != 200:
            self.answer({"error": "no"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer({"url": "https://huggingface.co/me/bird"})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": self.mode(f["path"]), "shouldIgnore": False} for f in asked]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            action = {"upload": {"href": f"{self.server.url}/put", "header": {}}}
            self.answer({"transfer": "basic", "objects": [{**o, "actions": action} for o in asked]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
            self.answer({"commitUrl": "https://huggingface.co/me/bird/commit/0123", "commitOid": "0123"})
        else:  # the card's front matter is looked at
            self.answer({"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        import hashlib

        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/bird", "sha": "0123", "siblings": []})

    def mode(self, path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        return None


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def studio(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hosts = constants.HF_URL_HOSTS | {"127.0.0.1"}  # as HF_ENDPOINT does where it is set before the client is imported
    monkeypatch.setattr(constants, "HF_URL_HOSTS", hosts)
    studio = Studio(tiny_settings(home))
    yield studio
    studio.close()


@pytest.mark.parametrize("public", [True, False])
def test_an_adapter_is_pushed_with_its_card(
    studio: Studio, hub: Hub, public: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    address = Pusher(studio.exporter, hub.url).push("wizard", "me/bird", public=public)
    assert address == "https://huggingface.co/me/bird/commit/0123"
    [made] = hub.made
    assert (made["name"], made["organization"], made["visibility"]) == ("bird", "me", "public" if public else "private")
    folder = studio.adapters.path(studio.adapters.get("wizard"))
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "studio.json"}
    assert all(hub.files[path.name] == path.read_bytes() for path in folder.iterdir())
    assert (
        hub.files["README.md"].startswith(b"---\n")
        and b"\nlibrary_name: peft\n" in hub.files["README.md"]
        and hub.tokens >= {f"Bearer {TOKEN}"}
    )
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())
    again = tmp_path / "again"
    again.mkdir()
    for name, content in hub.files.items():
        (again / name).write_bytes(content)
    assert studio.importer.add(str(again), f"again {public}").record.sha256 == studio.adapters.get("wizard").sha256


def test_a_refusal_of_the_hub_is_one_sentence_without_the_token(studio: Studio, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pusher = Pusher(studio.exporter, hub.url)
    for status, kind in ((401, InvalidInput), (403, InvalidInput), (404, NotFound), (500, BaseUnavailable)):
        hub.status = status
        with pytest.raises(kind) as caught:
            pusher.push("wizard", "me/bird")
        assert TOKEN not in str(caught.value) and str(caught.value).endswith(".") and "me/bird" in str(caught.value)
    with pytest.raises(InvalidInput, match="is no Hub id"):
        pusher.push("wizard", "bird")
    with pytest.raises(InvalidInput, match="as gguf; export it as peft"):
        pusher.push("prefix", "me/bird", wish=Wish("gguf"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InvalidInput, match="set HF_TOKEN"):
        pusher.push("wizard", "me/bird")


def test_export_writes_a_zip_or_a_folder(shell: Shell, tmp_path: Path) -> None:
    path = Path(shell.run("adapter", "export", "wizard", "--format", "gguf", "--with-base", "--out", tmp_path, "--json").json["path"])
    assert sorted(p.name for p in path.iterdir()) == ["Modelfile", "README.md", "adapter.gguf", "base.gguf"]
    assert Path(shell.run("adapter", "export", "wizard", "--format", "merged", "--out", tmp_path, "--json").json["path"]).is_dir()
    assert "choose one of peft" in shell.refuse("adapter", "export", "wizard", "--format", "onnx")
    assert "set HF_TOKEN" in shell.refuse("adapter", "push", "wizard", "me/bird")


def test_xray_says_what_each_layer_got(shell: Shell, home: Path) -> None:
    found = shell.run("adapter", "xray", "wizard", "--json").json
    assert len(found["layers"]) == 14 and "directions carry 95%" in found["reading"]
    view = found["layers"]["model.layers.0.mlp.up_proj"]
    weight = dense_weight(make_model(0, 600).get_submodule("model.layers.0.mlp.up_proj"))
    assert view["relative"] == pytest.approx(view["norm"] / float(weight.norm()), rel=1e-4) and len(view["singular"]) == 4
    [kept] = home.glob("bases/*/row-lengths-files-*.npz")  # measured once
    before = kept.stat().st_mtime_ns
    lines = shell.run("adapter", "xray", "long").out.splitlines()
    assert len(lines) == 15 and "lengths moved by" in lines[1] and kept.stat().st_mtime_ns == before
    kept.write_bytes(b"broken")
    assert shell.run("adapter", "xray", "wizard", "--json").json == found
    prefix = shell.run("adapter", "xray", "prefix", "--json").json
    assert prefix["layers"] == {} and prefix["reading"].startswith("A prefix changes no weights")


def test_compare_says_what_differs_and_how_alike_they_are(shell: Shell) -> None:
    found = shell.run("adapter", "compare", "wizard", "pirate", "long", "--json").json
    assert found["adapters"] == ["wizard", "pirate", "long"] and found["differences"]["rank"] == [4, 6, 4]
    assert found["differences"]["kind"] == ["lora", "lora", "dora"] and len(found["likeness"]) == 3
    first = found["likeness"][0]
    assert first["of"] == ["wizard", "pirate"] and first["layers"] == 8 and 0 < first["overlap"] < 1 and abs(first["cosine"]) < 0.5
    assert "wizard and pirate: cosine" in shell.run("adapter", "compare", "wizard", "pirate").out
    assert "Name two to 12 different adapters" in shell.refuse("adapter", "compare", "wizard", "wizard")
    assert "changes no weights" in shell.refuse("adapter", "compare", "wizard", "prefix")


def test_the_map_says_who_points_where(shell: Shell, studio: Studio) -> None:
    found = shell.run("adapter", "map", "wizard", "pirate", "long", "prefix", "--json").json
    [island] = found["bases"]
    assert island["adapters"] == ["wizard", "pirate", "long"] and found["left_out"] == ["prefix is a prefix, which changes no weights."]
    table = island["overlaps"]
    told = {tuple(pair["of"]): pair["overlap"] for pair in shell.run("adapter", "compare", *island["adapters"], "--json").json["likeness"]}
    for i, one in enumerate(island["adapters"]):
        assert table[i][i] == pytest.approx(1.0, abs=1e-4)
        for j in range(i + 1, 3):  # one product a layer says what the principal angles say
            assert table[i][j] == table[j][i] == pytest.approx(told[one, island["adapters"][j]], abs=1e-4)
    copied = studio.make_adapter("wizard:0.5", "weaker wizard").record
    try:
        assert studio.map_adapters(["wizard", copied.id, "pirate"], Search()).islands[0].reading == (
            "wizard and weaker wizard point the same way: 1.00."
        )
    finally:
        studio.adapters.remove(copied.id)
    assert "A map is of 2 to 40 adapters, and these are 1" in shell.refuse("adapter", "map", "wizard", "wizard")


def test_a_map_can_be_stopped(studio: Studio) -> None:
    def stop(share: float, _what: str) -> None:
        if share > 0.3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        studio.map_adapters(["wizard", "pirate", "long"], Search(), stop)


def test_two_adapters_are_asked_the_same(shell: Shell) -> None:
    found = shell.run("adapter", "differ", "wizard", "pirate", "--prompt", "Who are you?", "--prompt", "What is for lunch?", "--json").json
    assert found["differences"]["rank"] == [4, 6] and 0 < found["likeness"]["overlap"] < 1
    assert [answers["prompt"] for answers in found["answers"]] == ["Who are you?", "What is for lunch?"]
    alone = shell.run("chat", "--adapter", "pirate", "--greedy", "--max-tokens", "96", "Who are you?", "--json").json
    assert found["answers"][0]["second"] == alone["text"] != found["answers"][0]["base"]
    assert "changes no weights" in shell.run("adapter", "differ", "wizard", "prefix").out
    assert "Both are the adapter 'wizard'" in shell.refuse("adapter", "differ", "wizard", "wizard")
    many = [part for number in range(6) for part in ("--prompt", f"{number}?")]
    assert "These are 6 prompts" in shell.refuse("adapter", "differ", "wizard", "pirate", *many)
