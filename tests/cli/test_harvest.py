"""`actstore harvest` and `extend` on the command line: workers, filters, bad corpora, a
full disk.
"""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import actstore
from actstore.builtin import stdlib_corpus
from actstore.format import local_writes
from actstore.format.storage import Storage
from actstore.harvesting import progress_display, token_blocks
from actstore.harvesting.progress import Progress
from actstore.inspect.verify import verify
from tests.cli.test_bad_input import refused
from tests.model.checkpoints import gpt2, saved, with_own_code

Cli = Callable[..., tuple[int, str, str]]
SITE, OTHER = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
SPEC = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": SITE,
    "tokens": "3k",
    "context": "32",
    "batch": "2",
    "unit-sequences": "10",
}


def words(out: Path, *more: str, **changes: str) -> list[str]:
    options = {
        **SPEC,
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    given = (word for name, value in options.items() for word in (f"--{name}", value))
    return ["actstore", "harvest", "--out", str(out), *given, *more]


def objects(url: Path) -> dict[str, bytes]:
    storage = Storage(str(url))
    return {key: storage.read(key) for key in storage.list()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed harvest of SPEC writes."""
    out = tmp_path_factory.mktemp("whole") / "store"
    spec = {
        name.replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in SPEC.items()
    }
    actstore.harvest({**spec, "tokens": 3000}, str(out))
    return objects(out)


@pytest.fixture
def store(whole: dict[str, bytes], tmp_path: Path) -> Path:
    """A copy of it."""
    storage = Storage(str(tmp_path / "copy"))
    for key, data in whole.items():
        storage.put(key, data)
    return tmp_path / "copy"


def test_extend_adds_sites_then_tokens(store: Path, cli: Cli) -> None:
    code, _, err = cli(
        "actstore",
        "extend",
        str(store),
        "--sites",
        OTHER,
        "--sites",
        "blocks.2.hook_mlp_out",
    )
    assert code == 0
    assert "3,008 rows of 3 sites in 10 units" in " ".join(err.split())
    code, _, err = cli("actstore", "extend", str(store), "--tokens", "1k")
    assert code == 0
    found = actstore.open(store)
    assert found.sites == (SITE, OTHER, "blocks.2.hook_mlp_out")
    # The 94 sequences end inside unit 9; the new ones begin with unit 10.
    assert (found.manifest.n_sequences, found.manifest.n_units) == (94 + 32, 10 + 4)
    assert found.manifest.n_rows == (94 + 32) * 32
    assert verify(found).problems == []
    code, out, _ = cli("actstore", "info", str(store))
    assert "4,032 per site" in out


def test_extend_refuses_what_it_cannot_do(
    store: Path, cli: Cli, tmp_path: Path
) -> None:
    before = objects(store)
    refused(cli("actstore", "extend", str(store)), "either more sites or more tokens")
    refused(
        cli("actstore", "extend", str(store), "--sites", OTHER, "--tokens", "1k"),
        "one at a time",
    )
    refused(
        cli("actstore", "extend", str(store), "--sites", SITE), SITE, "has that already"
    )
    refused(
        cli("actstore", "extend", str(store), "--sites", "blocks.0.nonsense"),
        "blocks.0.nonsense",
    )
    refused(cli("actstore", "extend", str(store), "--tokens", "lots"), "lots")
    refused(
        cli("actstore", "extend", str(tmp_path / "none"), "--tokens", "1k"),
        "manifest.json",
    )
    assert objects(store) == before


def test_three_workers_one_after_the_other(
    whole: dict[str, bytes],
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first worker, which reads for all, comes later.
    monkeypatch.setattr(token_blocks, "PATIENCE_S", 0.05)
    out = tmp_path / "store"
    for worker, left in (
        ("2/3", "7 units of other workers"),
        ("1/3", "3 units of other workers"),
    ):
        code, _, err = cli(*words(out, "--worker", worker))
        assert code == 0
        assert f"this worker's share is done; {left} are still missing" in " ".join(
            err.split()
        )
        assert not (out / "manifest.json").exists()
    code, _, err = cli(*words(out, "--worker", "3/3"))
    assert code == 0
    assert "3,008 rows" in " ".join(err.split())
    assert objects(out) == whole


@pytest.mark.parametrize("worker", ["0/3", "4/3", "2", "a/b", "1/0", "-1/3", ""])
def test_a_worker_that_is_none(worker: str, cli: Cli, tmp_path: Path) -> None:
    refused(
        cli(*words(tmp_path / "out", f"--worker={worker}")),
        repr(worker),
        "wanted i/n with 1 <= i <= n",
    )
    assert not (tmp_path / "out").exists()


def stream(n: int) -> np.ndarray:
    """The corpus' first tokens in contexts of 32, made without the harvest's own code:
    int [n, 32].
    """
    from actstore.model.load_model import load_model
    from schemas.source import ModelSource

    tokenizer = load_model(ModelSource(name="builtin:mini")).tokenizer
    text = "".join(
        f"<|endoftext|>{text}"
        for _, text in itertools.islice(stdlib_corpus.documents(), 30)
    )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids[: n * 32]).reshape(n, 32)


@pytest.mark.parametrize(
    ("more", "special", "first", "file"),
    [
        (["--exclude-special-tokens"], True, 0, False),
        (["--skip-first", "5"], False, 5, False),
        ([], False, 0, True),
        (["--exclude-special-tokens", "--skip-first", "1"], True, 1, True),
    ],
)
def test_filters_keep_the_rows_they_should(
    more: list[str], special: bool, first: int, file: bool, cli: Cli, tmp_path: Path
) -> None:
    tokens = stream(94)
    values, counts = np.unique(tokens, return_counts=True)
    frequent = values[np.argsort(-counts)][:3]
    keep = np.ones(tokens.shape, bool)
    keep[:, :first] = False
    if special:
        assert (tokens == 0).any()
        keep &= tokens != 0
    if file:
        (tmp_path / "ids.txt").write_text(
            "# frequent ones\n\n" + "".join(f"{i}  # {i}\n" for i in frequent)
        )
        more = [*more, "--exclude-tokens", str(tmp_path / "ids.txt")]
        keep &= ~np.isin(tokens, frequent)
    code, _, err = cli(*words(tmp_path / "store", *more))
    assert code == 0, err
    found = actstore.open(tmp_path / "store")
    where = found.provenance(found.rows())
    got = sorted(zip(where.sequence.tolist(), where.position.tolist(), strict=True))
    assert got == [tuple(pair) for pair in np.argwhere(keep).tolist()]
    assert (where.token == tokens[where.sequence, where.position]).all()
    assert found.manifest.n_rows == keep.sum() < tokens.size
    # the token blocks are whole all the same
    assert np.array_equal(found.tokens(np.arange(94)), tokens)


def test_a_list_of_tokens_that_is_none(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("3\nthe\n")
    out = tmp_path / "out"
    refused(
        cli(*words(out, "--exclude-tokens", str(tmp_path / "ids.txt"))),
        "line 2",
        "'the'",
        "one number per line",
    )
    refused(
        cli(*words(out, "--exclude-tokens", str(tmp_path / "none.txt"))),
        "none.txt",
        "cannot be read",
    )
    refused(cli(*words(out, "--skip-first=-1")), "--skip-first", "-1")
    assert not out.exists()


def test_corpora_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    good = "import os\n" * 60
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "a.txt").write_text(good)
    (tmp_path / "latin" / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.jsonl").write_text(json.dumps({"text": good}) + '\n{"text": "half')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    packed = gzip.compress(os.urandom(5000).hex().encode())
    (tmp_path / "cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    for name, said in {
        "latin": ["b.txt", "not UTF-8", "byte 3"],
        "cut.jsonl": ["cut.jsonl", "not JSON"],
        "broken.parquet": ["broken.parquet", "cannot read"],
        "cut.txt.gz": ["cut.txt.gz"],
    }.items():
        refused(cli(*words(tmp_path / "out", corpus=str(tmp_path / name))), *said)
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_document_that_does_not_tokenise_is_left_out_and_told(
    cli: Cli, tmp_path: Path
) -> None:
    texts = ["x = 1\n" * 300, "half a \ud800 pair", "", "y = 2\n" * 300]
    for name, kept in (("all", texts), ("good", [texts[0], texts[3]])):
        lines = (json.dumps({"text": text}) + "\n" for text in kept)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        code, _, err = cli(
            *words(
                tmp_path / name, corpus=str(tmp_path / f"{name}.jsonl"), tokens="50k"
            )
        )
        assert code == 0
        assert "Traceback" not in err
        assert ("2 documents were left out" in " ".join(err.split())) == (name == "all")
        assert "the corpus ended early" in " ".join(err.split())
    mine, other = actstore.open(tmp_path / "all"), actstore.open(tmp_path / "good")
    sequences = np.arange(other.manifest.n_sequences)
    assert np.array_equal(mine.tokens(sequences), other.tokens(sequences))
    assert mine.manifest.n_sequences == other.manifest.n_sequences


def test_a_disk_that_fills_up_inside_a_unit(
    whole: dict[str, bytes], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC while unit 4's norms are written: its values lie there, its record does
    not; then there is space again.
    """
    out = tmp_path / "store"
    norms = out / "norm" / SITE / "c" / "4"
    sync, replace = os.fsync, local_writes.replace
    here = threading.local()

    def told(path: Path, data: local_writes.Buffers) -> None:
        here.path = path
        replace(path, data)

    def full(fd: int) -> None:
        if getattr(here, "path", None) == norms:
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(local_writes, "replace", told)
        patch.setattr(os, "fsync", full)
        refused(
            cli(*words(out)),
            "No space left",
            "free some space there, then run the same command again",
            f"norm/{SITE}",
        )
    assert (out / "acts" / SITE / "c" / "4" / "0").exists()
    assert not (out / "units" / "00004.json").exists()
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob(".tmp-*"))
    assert cli(*words(out))[0] == 0
    assert objects(out) == whole


def test_the_first_line_without_a_terminal_has_a_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its clock starts with the first batch, not with the first line."""
    monkeypatch.setattr(progress_display, "REPORT_EVERY_S", 10.0)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    printed = io.StringIO()
    report = progress_display.PlainLines(Console(file=printed, width=200))
    report(Progress("loading the model"))
    for tokens in (1000, 3000, 13_000):
        report(Progress("harvesting", tokens, 37_000, 1, 9))
        now[0] += 6
    said = printed.getvalue().splitlines()
    assert len(said) == 1
    assert said[0].startswith("13,000/37,000 tokens, 1,000 tokens/s, unit 1/9")
    assert said[0].endswith("24 s left")


@pytest.mark.usefixtures("no_question")
def test_custom_code_is_run_only_when_told(cli: Cli, tmp_path: Path) -> None:
    """By plan, harvest and extend; with the option it works and is in the plan."""
    folder, mark, name = tmp_path / tmp_path.name, tmp_path / "ran", "GPT2LMHeadModel"
    with_own_code(folder, mark, name)
    (tmp_path / "ids.jsonl").write_text(f'{{"ids": {list(range(50)) * 8}}}\n')
    given = {
        "model": str(folder),
        "corpus": str(tmp_path / "ids.jsonl"),
        "tokens": "320",
    }
    more = ("--token-column", "ids")
    out, option = tmp_path / "store", "--trust-remote-code"
    planned = ["actstore", "plan", *words(out, *more, **given)[4:]]
    refused(cli(*planned), "custom code", option)
    refused(cli(*words(out, *more, **given)), "custom code", option)
    refused(cli(*words(out, option)), "has no code of its own")
    assert not mark.exists()
    assert not out.exists()
    code, _, err = cli(*planned, option)
    assert code == 0, err
    assert mark.exists()
    code, _, err = cli(*words(out, *more, option, **given))
    assert code == 0, err
    assert actstore.open(str(out)).manifest.spec.model.trust_remote_code
    refused(cli("actstore", "extend", str(out), "--sites", OTHER), str(out), option)
    code, _, err = cli("actstore", "extend", str(out), "--sites", OTHER, option)
    assert code == 0, err
    assert actstore.open(str(out)).sites == (SITE, OTHER)


def test_keys_that_do_not_matter_are_told_and_those_that_do_refused(
    cli: Cli, tmp_path: Path
) -> None:
    """By plan and harvest alike."""
    saved(
        gpt2(),
        tmp_path / "m",
        lambda state: {
            key: value for key, value in state.items() if ".h.1.mlp." not in key
        },
    )
    (tmp_path / "ids.jsonl").write_text(f'{{"ids": {list(range(50)) * 8}}}\n')
    given = {
        "model": str(tmp_path / "m"),
        "corpus": str(tmp_path / "ids.jsonl"),
        "tokens": "320",
    }
    more = ("--token-column", "ids")
    harvest = words(tmp_path / "store", *more, **given)
    for there in (["actstore", "plan", *harvest[4:]], harvest):
        at = there.index(SITE)
        refused(
            cli(*there[:at], OTHER, *there[at + 1 :]),
            "lacks 4 weights",
            "transformer.h.1.mlp.c_fc.bias",
        )
        code, _, err = cli(*there)
        assert code == 0, err
        assert "note: the checkpoint of" in err
        assert "transformer.h.1.mlp.c_fc.bias" in err.replace("\n", "")
