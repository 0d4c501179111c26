"""Numbers, sizes, patterns and specs as a user writes them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from actstore.console.counts import parse_count, parse_size
from actstore.errors import SiteError, SpecError
from actstore.format.site_patterns import match_sites
from actstore.harvesting.harvest_spec import resolve_spec


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("1M", 10**6),
        ("2.5B", 2_500_000_000),
        ("300k", 300_000),
        ("100_000", 100_000),
        ("7", 7),
    ],
)
def test_counts(text: str, n: int) -> None:
    assert parse_count(text) == n


@pytest.mark.parametrize(
    ("text", "n"),
    [("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5g", 3 << 29), ("12", 12)],
)
def test_sizes(text: str, n: int) -> None:
    assert parse_size(text) == n


@pytest.mark.parametrize("text", ["", "many", "-5", "1M tokens"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a"):
        parse_count(text)
    with pytest.raises(SpecError, match="is not a"):
        parse_size(text)


def test_a_spec_says_what_is_wrong_with_it() -> None:
    good = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "a",
        "tokens": 10,
    }
    assert resolve_spec(good).sites == ("a",)
    with pytest.raises(
        SpecError,
        match=r"harvest spec: tokens: wanted a count above 0, such as 500k, got 0",
    ):
        resolve_spec({**good, "tokens": 0})
    with pytest.raises(
        SpecError, match=r"sits: there is no such key; did you mean sites"
    ):
        resolve_spec({**good, "sits": "b"})
    with pytest.raises(SpecError, match=r"model: missing"):
        resolve_spec({"corpus": "builtin:stdlib", "sites": "a", "tokens": 10})
    filled = resolve_spec({"sites": "a"}, object(), np.zeros((3, 5), np.int64))
    assert (filled.tokens, filled.context, filled.corpus.kind) == (15, 5, "memory")


def test_patterns() -> None:
    names = [
        f"blocks.{i}.hook_{end}" for i in range(12) for end in ("mlp_out", "resid_post")
    ] + ["hook_embed"]
    assert match_sites(["blocks.*.hook_mlp_out"], names) == [
        f"blocks.{i}.hook_mlp_out" for i in range(12)
    ]
    assert match_sites(["blocks.{9..10}.hook_*"], names)[:2] == [
        "blocks.9.hook_mlp_out",
        "blocks.9.hook_resid_post",
    ]
    assert match_sites(["hook_embed", "hook_embed"], names) == ["hook_embed"]
    with pytest.raises(SiteError):
        match_sites(["*"], ["a.b"])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "numbers", ["0..999999999", "0..999999999}.{0..999999999", f"0..{'9' * 5000}"]
)
def test_a_range_of_any_length_ends_at_the_first_site_that_is_not_there(
    numbers: str,
) -> None:
    with pytest.raises(SiteError, match="there is no site"):
        match_sites([f"blocks.{{{numbers}}}"], ["blocks.0", "blocks.0.0", "blocks.1"])
    for empty in ("{}", "{5..1}", "{1,,2}"):
        with pytest.raises(SiteError, match="is empty"):
            match_sites([f"blocks.{empty}"], ["blocks.0"])


def test_the_command_is_light_to_import() -> None:
    code = (
        "import sys, actstore.harvesting.harvest_command, actstore.harvesting.harvest_spec, actstore.machine.glibc_malloc\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'datasets', 'zarr', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180)
