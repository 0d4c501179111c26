"""A user's mistakes, through the real command lines: one clear error, exit code 1, no
traceback, nothing half-made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from schemas.stream import StreamSpec
from tests.support import make_plan, make_store

Cli = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Asserts a clear refusal that names all of `words`."""
    code, out, err = result
    assert code == 1, (out, err)
    assert err.startswith("error: ")
    assert "Traceback" not in err + out
    for word in words:
        assert word in err, f"{word!r} not in {err!r}"


def test_info_norms_ls_and_verify_of_a_good_store(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "good", n_units=20, unit_sequences=1)
    code, out, _ = cli("actstore", "info", store.url)
    assert code == 0
    assert store.manifest.content_id in out
    code, out, _ = cli("actstore", "info", store.url, "--json")
    assert json.loads(out)["n_rows"] == store.manifest.n_rows
    code, out, _ = cli("actstore", "info", store.url, "--shuffle", "--batch", "64")
    assert code == 0
    chunks = store.stream(StreamSpec(batch=64)).window_chunks
    assert re.search(rf"2,048 MB +\d+ MB +{chunks} +\d+ +\d\.\d%", out)
    code, out, _ = cli(
        "actstore", "norms", store.url, "--json", "--plot", str(tmp_path / "norms.html")
    )
    assert [site["site"] for site in json.loads(out)] == list(store.sites)
    text = (tmp_path / "norms.html").read_text()
    assert text.startswith("<!doctype html>")
    assert 'class="figure"' in text
    code, out, _ = cli("actstore", "norms", store.url)
    assert code == 0
    code, out, _ = cli("actstore", "verify", store.url)
    assert (code, out.endswith(" 0 bad\n")) == (0, True)
    code, out, _ = cli("actstore", "ls", str(tmp_path))
    assert out.startswith(store.url)


def test_ls_tells_a_folder_without_stores_from_none(tmp_path: Path, cli: Cli) -> None:
    code, out, err = cli("actstore", "ls", str(tmp_path))
    assert (code, out) == (0, "")
    assert err == f"no stores at {tmp_path} or directly below it\n"
    (tmp_path / "file").write_text("")
    for url in (f"{tmp_path}/nope", f"{tmp_path}/file", "memory://nope"):
        refused(cli("actstore", "ls", url), url, "no such folder")
        refused(cli("actstore", "ls", url, "--json"), url, "no such folder")


def test_output_begins_with_no_empty_line(tmp_path: Path, cli: Cli) -> None:
    nowhere = str(tmp_path / "nowhere")
    refused(cli("trainer", "eval", nowhere), nowhere)
    refused(cli("trainer", "report", nowhere, "--out", f"{nowhere}.html"), nowhere)
    store = make_store(tmp_path / "store", n_units=2)
    code, _, err = cli("actstore", "verify", store.url)
    assert (code, err) == (0, "")


def test_not_a_store(tmp_path: Path, cli: Cli) -> None:
    refused(cli("actstore", "info", str(tmp_path)), str(tmp_path), "manifest.json")
    refused(cli("actstore", "info", str(tmp_path / "nowhere")), "nowhere")
    refused(cli("actstore", "info", "nosuch://x/y"), "nosuch")
    refused(
        cli(
            "trainer", "train", "--store", str(tmp_path), "--out", str(tmp_path / "run")
        ),
        "manifest.json",
    )
    assert not (tmp_path / "run").exists()


def test_a_newer_format(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=2)
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"format_version": 1', '"format_version": 2')
    )
    refused(cli("actstore", "info", store.url), "format version 2.2", "upgrade")


def test_unfinished(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path / "s", n_units=2)
    (tmp_path / "s" / "manifest.json").unlink()
    refused(cli("actstore", "verify", str(tmp_path / "s")), "not ended")
    code, out, _ = cli("actstore", "ls", str(tmp_path))
    assert "unfinished" in out


def test_corrupt_and_missing_objects_are_each_named(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    bad = tmp_path / "s" / "acts" / store.sites[0] / "c" / "1" / "0"
    data = bytearray(bad.read_bytes())
    data[10] ^= 1
    bad.write_bytes(data)
    gone = tmp_path / "s" / "norm" / store.sites[1] / "c" / "2"
    gone.unlink()
    code, out, err = cli("actstore", "verify", store.url)
    assert code == 1
    assert str(bad) in out
    assert str(gone) in out
    assert " 2 bad" in out
    assert "Traceback" not in err
    train = cli(
        "trainer",
        "train",
        "--store",
        store.url,
        "--out",
        str(tmp_path / "r"),
        "--k",
        "2",
        "--batch",
        "64",
    )
    refused(train, "unit 1", store.sites[0], "chunk 0", "verify")
    assert not (tmp_path / "r" / "sae.json").exists()


def test_sites_k_and_keys(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    run = ("trainer", "train", "--store", store.url, "--out", str(tmp_path / "r"))
    refused(
        cli(*run, "--sites", "blocks.9.hook_mlp_out"),
        "blocks.9.hook_mlp_out",
        store.sites[0],
    )
    refused(cli(*run, "--k", "1000"), "k is 1000", "128 latents")
    refused(cli(*run, "--sae", "nonsense"), "nonsense")
    refused(cli(*run, "--rows", "many"), "many")
    spec = tmp_path / "spec.yaml"
    spec.write_text("# nothing\n")
    refused(cli(*run, "--spec", str(spec)), "spec.yaml: it is empty", "store: URL")
    spec.write_text("sae: {kind: topk, kk: 3}\noptimizer: {lr: 0.1}\n")
    refused(
        cli(*run, "--spec", str(spec)), "kk", "optimizer", "did you mean", "optimiser"
    )


def test_an_existing_run(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=4)
    run = (
        "trainer",
        "train",
        "--store",
        store.url,
        "--out",
        str(tmp_path / "r"),
        "--k",
        "2",
        "--batch",
        "64",
    )
    assert cli(*run, "--rows", "256")[0] == 0
    refused(cli(*run, "--rows", "256"), "already there", "--resume")
    refused(
        cli(*run, "--rows", "512"), "another spec", "rows: wanted 512, there is 256"
    )
    # its default, so the same spec
    assert cli(*run, "--rows", "256", "--rescale", "none", "--resume")[0] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    elsewhere = (
        "trainer",
        "train",
        "--store",
        store.url,
        "--out",
        str(tmp_path / "other"),
        "--k",
        "2",
    )
    refused(cli(*elsewhere), "not empty")


def harvest(out: Path, **options: str) -> list[str]:
    values = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": "2k",
    }
    words = ["actstore", "harvest", "--out", str(out)]
    for name, value in {**values, **options}.items():
        words += [f"--{name}", value]
    return words


def test_harvest_refusals(tmp_path: Path, cli: Cli) -> None:
    refused(cli(*harvest(tmp_path / "a", tokens="0")), "tokens", "0")
    refused(cli(*harvest(tmp_path / "a", tokens="lots")), "lots")
    refused(
        cli(*harvest(tmp_path / "a", model="builtin:huge")),
        "builtin:huge",
        "builtin:tiny",
    )
    refused(cli(*harvest(tmp_path / "a", model=str(tmp_path))), "config.json")
    refused(
        cli(*harvest(tmp_path / "a", corpus=str(tmp_path / "none.jsonl"))), "none.jsonl"
    )
    refused(
        cli(*harvest(tmp_path / "a", sites="blocks.0.hook_mlp_uot")),
        "hook_mlp_uot",
        "blocks.0.hook_mlp_out",
    )
    refused(
        cli(*harvest(tmp_path / "a", sites="blocks.0.attn.hook_pattern")),
        "hook_pattern",
    )
    assert not (tmp_path / "a" / "plan.json").exists()


def test_an_existing_output(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=2)
    refused(cli(*harvest(Path(store.url))), "already there")
    plan = make_plan(n_units=2)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "plan.json").write_text(plan.to_json())
    refused(cli(*harvest(tmp_path / "t")), "another harvest", "spec.tokens")
