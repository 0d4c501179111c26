"""The explorer's files and commands: what is written, and what is refused."""

from __future__ import annotations

import gc
import gzip
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import actstore
from actstore.errors import CorruptError, SpecError
from actstore.format.storage import Storage
from tests.trainer.explorer.explored import dense, small_store, trained
from trainer.analysis.cosines import nearest
from trainer.cli import app
from trainer.errors import RunError, TrainerWarning
from trainer.explorer.cards import card_html, interesting_latents, worth_of
from trainer.explorer.explore import explore
from trainer.explorer.latent_json import chunk_json, index_json
from trainer.explorer.page_file import page_start
from trainer.explorer.read_explorer import Explorer
from trainer.explorer.serve import ExplorerServer
from trainer.explorer.token_effects import Unembedding, effects_of, unembedding_of
from trainer.runs.trained_sae import load

TOPK = {"kind": "topk", "k": 4, "n_latents": 300}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explored")
    store = small_store(folder / "store")
    trained(store, folder / "run", TOPK, stream={"rescale": "log"})
    trained(store, folder / "other", {**TOPK, "n_latents": 64}, seed=1)
    explore(folder / "run", beside=[folder / "other"], logits=False)
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "explorer", tmp_path / "copy"))


def test_the_columns_are_what_the_run_says(run: Path) -> None:
    explorer = Explorer(run / "explorer")
    sae = load(str(run))
    store = actstore.open(str(run.parent / "store"))
    values = dense(sae, store, store.rows("held_out"))
    rows = [row for group in range(2) for row in explorer.latents(group)]
    assert [row["latent"] for row in rows] == list(range(300))
    density = (values > 0).mean(axis=(0, 1))
    assert [row["density"] for row in rows] == pytest.approx(density)
    strengths = [
        values[i].max(axis=0) / float(sae.scale[i]) / store.norms[site].all.mean_norm
        for i, site in enumerate(sae.sites)
    ]
    wanted = np.max(strengths, axis=0) * sae.decoder.norm(dim=1).numpy()
    assert [row["strength"] for row in rows] == pytest.approx(wanted, rel=1e-4)
    decoder = torch.nn.functional.normalize(sae.decoder, dim=1)
    other = load(str(run.parent / "other"))
    cosines = decoder @ torch.nn.functional.normalize(other.decoder, dim=1).T
    found = torch.tensor([row["max_cosine"] for row in rows])
    torch.testing.assert_close(found, cosines.max(dim=1).values)
    own = (decoder @ decoder.T).fill_diagonal_(-2)
    near = torch.tensor([row["near_cosine"] for row in rows])
    torch.testing.assert_close(near, own.topk(8, dim=1).values)
    assert explorer.record.no_logits == "they were left out (--no-logits)"


def test_chunks_and_index_are_json_of_all_latents(run: Path) -> None:
    explorer = Explorer(run / "explorer")
    index = json.loads(gzip.decompress(index_json(explorer)))
    assert index["record"]["n_latents"] == 300
    assert index["layers"] == ["0 mlp_out", "1 mlp_out", "2 mlp_out"]
    chunk = json.loads(gzip.decompress(chunk_json(explorer, 1)))
    assert [one["latent"] for one in chunk["latents"]] == list(range(256, 300))
    for one in chunk["latents"]:
        lengths = {len(column) for column in one["contexts"].values()}
        assert len(lengths) == 1
        assert sum(one["histogram"]["counts"]) == one["firings"]
        assert sum(one["layer_firings"]) == one["firings"]


def test_dead_latents_and_directions_without_length() -> None:
    made = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(5, 3, generator=made), dim=1)
    directions[2] = 0
    found = nearest(directions, directions, 8, 64, own=0)
    assert found.latent[2].tolist() == [-1] * 8
    assert np.isnan(found.cosine[2]).all()
    for latent in (0, 1, 3, 4):
        assert 2 not in found.latent[latent]
        assert latent not in found.latent[latent]
        assert (found.latent[latent] >= 0).sum() == 3
    assert nearest(directions[:1], directions[:1], 8, 64, own=0).latent.tolist() == [
        [-1] * 8
    ]


def test_effects_are_those_of_the_whole_product() -> None:
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=made)
    gain = torch.rand(8, generator=made)
    decoder = torch.randn(7, 8, generator=made)
    (found,) = effects_of(decoder, Unembedding(weight, gain, centres=True), 1 << 20)
    logits = ((decoder - decoder.mean(dim=1, keepdim=True)) * gain) @ weight.T
    centred = (logits - logits.mean(dim=1, keepdim=True)).numpy()
    assert (found.boosted[:, 0] == centred.argmax(axis=1)).all()
    assert (found.suppressed[:, 0] == centred.argmin(axis=1)).all()
    np.testing.assert_allclose(
        found.boosted_logits[:, 0], centred.max(axis=1), rtol=1e-4
    )
    assert (found.histogram.sum(axis=1) == 50).all()


def test_the_unembedding_of_the_builtin_model_is_its_own(tmp_path: Path) -> None:
    """Seen through it, a direction changes the model's own logits as it is said to."""
    site = "blocks.1.hook_mlp_out"
    store = actstore.harvest(
        {
            "model": "builtin:tiny",
            "corpus": "builtin:stdlib",
            "sites": [site],
            "tokens": 2048,
            "context": 64,
        },
        tmp_path / "store",
    )
    sae = trained(store, tmp_path / "run", {"kind": "topk", "k": 4, "n_latents": 32})
    through = unembedding_of(sae, store)
    assert isinstance(through, Unembedding)
    from actstore.model.load_model import load_model

    module = load_model(store.manifest.spec.model, "cpu").module
    norm = module.transformer.ln_f
    assert through.centres
    torch.testing.assert_close(through.gain, norm.weight.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(through.weight, module.lm_head.weight.float())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("latents.parquet", lambda path: path.write_bytes(b"PAR1 nothing")),
        ("contexts.parquet", lambda path: path.unlink()),
        ("tokens.parquet", lambda path: pq.write_table(pa.table({"a": [1]}), path)),
        ("latents.parquet", lambda path: cut(path, slice(0, 299))),
        ("contexts.parquet", lambda path: changed(path, "layer", 99)),
        ("contexts.parquet", lambda path: changed(path, "latent", 700)),
        ("meta.json", lambda path: path.write_text("{}")),
        ("meta.json", lambda path: path.write_bytes(b"[" * 100_000_000)),
    ],
)
def test_a_strangers_files_are_checked(copy: Path, name: str, damage: Any) -> None:
    damage(copy / name)
    with pytest.raises(
        (CorruptError, SpecError), match=re.escape(name.partition(".")[0])
    ):
        read_all(copy)


def read_all(folder: Path) -> None:
    explorer = Explorer(folder)
    index_json(explorer)
    for group in range(explorer.n_groups):
        chunk_json(explorer, group)


def cut(path: Path, part: slice) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(300))[part]), path, row_group_size=256)


def changed(path: Path, column: str, value: int) -> None:
    table = pq.read_table(path)
    field = table.schema.field(column)
    values = np.array(table.column(column))
    values[-1] = value
    place = table.schema.get_field_index(column)
    table = table.set_column(place, field, pa.array(values).cast(field.type))
    first = int((np.array(table.column("latent")) < 256).sum())
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, first))
        writer.write_table(table.slice(first))


@pytest.fixture
def server(run: Path) -> Iterator[ExplorerServer]:
    server = ExplorerServer(Explorer(run / "explorer"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(
    server: ExplorerServer, path: str, method: str = "GET", host: str | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {} if host is None else {"Host": host}
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def test_it_is_served_on_the_loopback_only(server: ExplorerServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    page = asked(server, "/").read().decode()
    assert "connect-src &#39;self&#39;" in page
    assert "Latents of run" in page
    chunk = json.loads(gzip.decompress(asked(server, "/chunk/1").read()))
    assert chunk["latents"][0]["latent"] == 256
    assert asked(server, "/index").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/meta.json",
        "/../meta.json",
        "/chunk/../../meta.json",
        "/%2e%2e/meta.json",
        "/chunk/2",
        "/chunk/-1",
        "/chunk/01",
        "/chunk/1?x",
        "/chunk/99999999999999",
        "/favicon.ico",
    ],
)
def test_other_paths_are_not_there(server: ExplorerServer, path: str) -> None:
    assert asked(server, path).status == 404


def test_only_get_and_only_our_names(server: ExplorerServer) -> None:
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert asked(server, "/", method).status == 501
    for host in ("evil.example", "127.0.0.1", f"evil.example:{server.server_port}"):
        assert asked(server, "/", host=host).status == 403
    assert asked(server, "/", host=f"localhost:{server.server_port}").status == 200
    with pytest.raises(SpecError, match="--port"):
        ExplorerServer(server.explorer, server.server_port)


def test_the_command_writes_a_page(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ["explore", str(run), "--page", str(page)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"explorer: {page}\n"
    text = page.read_text()
    assert text.count('id="chunk-') == 2
    assert "connect-src &#39;none&#39;" in text
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_the_command_serves_until_it_is_told_to_stop(run: Path) -> None:
    # A shell's background jobs, such as these tests, are born deaf to SIGINT.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from trainer.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "explore", str(run), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/", said)[0])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            connection.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()


def test_what_is_there_is_used_and_what_does_not_fit_is_refused(
    run: Path, tmp_path: Path
) -> None:
    with pytest.warns(TrainerWarning, match="again makes them again"):
        explore(run, rows=5)
    store = small_store(tmp_path / "narrow", sites={"blocks.0.hook_mlp_out": 8})
    narrow = trained(store, tmp_path / "narrow_run", {**TOPK, "n_latents": 32})
    with pytest.raises(RunError, match=r"width 8.*of 16"):
        explore(run, beside=[narrow.url], again=True)
    with pytest.raises(RunError, match="explorer"):
        Explorer(tmp_path / "nothing")
    with pytest.raises(RunError, match="local folder"):
        explore(run, out="memory://nowhere", again=True)


def test_files_in_an_object_store(run: Path, s3_url: str) -> None:
    """They are put there as a whole, and read from a copy that goes with its reader."""
    for path in run.rglob("*"):
        if path.is_file() and "explorer" not in path.parts:
            key = str(path.relative_to(run))
            Storage(f"{s3_url}/run").put(key, path.read_bytes())
    store = str(run.parent / "store")
    url = explore(f"{s3_url}/run", store=store, logits=False, rows=64)
    assert url == f"{s3_url}/run/explorer"
    assert explore(f"{s3_url}/run") == url
    here = explore(run, out=run.parent / "same", logits=False, rows=64)
    there, same = Explorer(url), Explorer(here)
    assert chunk_json(there, 1) == chunk_json(same, 1)
    copy = there.folder
    assert copy.exists()
    del there
    gc.collect()
    assert not copy.exists()
    Storage(url).delete("tokens.parquet")
    with pytest.raises(RunError, match="not all there"):
        Explorer(url)


def test_files_of_other_weights_are_made_again(run: Path, tmp_path: Path) -> None:
    """As after `trainer calibrate`."""
    folder = explore(run, out=tmp_path / "files", logits=False, rows=64)
    meta = Path(folder) / "meta.json"
    text = meta.read_text()
    weights = json.loads(text)["weights"]
    assert len(weights) == 64
    meta.write_text(text.replace(weights, "0" * 64))
    told: list[str] = []
    explore(run, out=tmp_path / "files", logits=False, rows=64, tell=told.append)
    assert "made again" in told[0]
    assert json.loads(meta.read_text())["weights"] == weights
    # What would change nothing is told.
    explore(run, out=tmp_path / "files", split="train", tell=told.append)
    assert "--again makes them again" in told[1]


def test_cards_escape_and_leave_out_what_is_nearly_silent(
    run: Path, copy: Path
) -> None:
    hostile = "<script>alert(1)</script>\0"
    table = pq.read_table(copy / "tokens.parquet")
    texts = pa.array([hostile] * table.num_rows)
    pq.write_table(table.set_column(1, "text", texts), copy / "tokens.parquet")
    cards = interesting_latents(copy, 5)
    assert cards
    for card in cards:
        text = card_html(card)
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;␀" in text
        assert "style=" not in text
        assert {tuple(token.text for token in one.tokens) for one in card.contexts}
        assert card.strength >= 0.05
    columns = {
        "firings": np.array([9, 100, 100, 100, 100]),
        "density": np.array([0.01, 0.01, 0.01, 0.5, 0.01]),
        "strength": np.array([1, 0.04, 0.5, 0.9, np.nan]),
        "same_token": np.array([1, 1, 0.25, 1, 1.0]),
        "alone": np.ones(5),
        "spread": np.array([1, 1, 2, 1, 1.0]),
    }
    worth = worth_of(columns, 2, across_layers=False)
    assert worth.tolist() == pytest.approx([0, 0, 0.25, 0.0009, 0])
    assert worth_of(columns, 2, across_layers=True)[2] == pytest.approx(0.25)


def test_texts_go_into_the_template_escaped(copy: Path) -> None:
    meta = json.loads((copy / "meta.json").read_text())
    meta["name"] = "</title><script>alert(1)</script>"
    (copy / "meta.json").write_text(json.dumps(meta))
    page = page_start(Explorer(copy))
    assert "<script>alert" not in page
