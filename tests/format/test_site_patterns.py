"""Patterns over the names of sites."""

from __future__ import annotations

import pytest

from actstore.errors import SiteError
from actstore.format.site_patterns import by_layer, expand, match_sites

NAMES = [
    "blocks.10.hook_mlp_out",
    "blocks.2.hook_mlp_out",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
    "blocks.0.attn.hook_z",
    "embed",
]


@pytest.mark.parametrize(
    ("pattern", "plain"),
    [
        ("a", ["a"]),
        ("a{0..2}b", ["a0b", "a1b", "a2b"]),
        ("a{3..3}", ["a3"]),
        ("{x, y}.{1,3}", ["x.1", "x.3", "y.1", "y.3"]),
        ("{0..1}{a,b}", ["0a", "0b", "1a", "1b"]),
        ("{one}", ["one"]),
        ("{0..1,5}", ["0..1", "5"]),
        ("{0..1234567890}", ["0..1234567890"]),
    ],
)
def test_braces_are_written_out_from_left_to_right(
    pattern: str, plain: list[str]
) -> None:
    assert list(expand(pattern)) == plain


def test_a_long_range_is_written_out_one_by_one() -> None:
    names = expand("{0..999999999}")
    assert [next(names), next(names)] == ["0", "1"]


@pytest.mark.parametrize("pattern", ["{}", "{1,}", "{,1}", "{ }", "{1..0}"])
def test_empty_braces_are_refused(pattern: str) -> None:
    message = (
        rf"site pattern 'a{pattern}b': {pattern} is empty; write {{0..5}} or {{1,3}}"
    )
    with pytest.raises(SiteError) as error:
        list(expand(f"a{pattern}b"))
    assert str(error.value) == message


def test_names_come_in_the_order_of_patterns_and_by_layer() -> None:
    mlp_out = [f"blocks.{i}.hook_mlp_out" for i in (0, 2, 10)]
    assert match_sites(["blocks.*.hook_mlp_out"], NAMES) == mlp_out
    assert match_sites(["embed", "blocks.0.hook_*"], NAMES) == [
        "embed",
        "blocks.0.hook_mlp_out",
        "blocks.0.hook_resid_post",
    ]
    assert match_sites(["blocks.{2,0}.hook_mlp_out"], NAMES) == [mlp_out[1], mlp_out[0]]
    assert match_sites(["blocks.2.*", "blocks.*.hook_mlp_out"], NAMES) == [
        mlp_out[1],
        mlp_out[0],
        mlp_out[2],
    ]
    assert match_sites(["*"], NAMES) == ["embed"]
    assert match_sites([], NAMES) == []


def test_a_star_stands_for_anything_between_two_dots() -> None:
    assert match_sites(["blocks.0.*.hook_z"], NAMES) == ["blocks.0.attn.hook_z"]
    assert match_sites(["b*.0.h*_m*t"], NAMES) == ["blocks.0.hook_mlp_out"]
    # a dot is a dot
    with pytest.raises(SiteError):
        match_sites(["b*.0xhook_mlp_out"], ["blocks.0.hook_mlp_out", "blocks0xhook"])


def test_other_names_are_looked_through_where_none_matches() -> None:
    assert match_sites(["embed*"], NAMES, ["embed.a", "embeds"]) == ["embed"]
    assert match_sites(["embed?"], NAMES, ["embed?"]) == ["embed?"]
    assert match_sites(["head.*"], NAMES, ["head.1", "head.0"]) == ["head.0", "head.1"]


def test_what_is_unknown_is_told_with_the_nearest_names() -> None:
    with pytest.raises(SiteError) as error:
        match_sites(["blocks.*.hook_mlp_in"], NAMES[2:4], ["nothing like it"])
    assert str(error.value) == (
        "no site matches 'blocks.*.hook_mlp_in'; the nearest names are"
        " blocks.0.hook_mlp_out, blocks.0.hook_resid_post (`*` and {0..5} are patterns)"
    )
    with pytest.raises(SiteError) as error:
        match_sites(["emb"], ["zzz", "yyy", "xxx", "www", "vvv"])
    assert str(error.value) == (
        "there is no site 'emb'; the nearest names are zzz, yyy, xxx, www (`*` and"
        " {0..5} are patterns)"
    )
    with pytest.raises(SiteError, match=r"nearest names are others_1 \(`\*`"):
        match_sites(["others"], ["zzz", "yyy"], ["others_1", "q"])
    near = [f"blocks.{i}.mlp" for i in range(6)]
    with pytest.raises(SiteError) as error:
        match_sites(["blocks.9.mlp"], near)
    assert str(error.value).count("blocks.") == 1 + 4


def test_layers_are_sorted_by_number() -> None:
    assert by_layer("blocks.10.x") == [(1, 0, "blocks"), (0, 10, ""), (1, 0, "x")]
    names = ["a.b", "a.10", "a.9", "a"]
    assert sorted(names, key=by_layer) == ["a", "a.9", "a.10", "a.b"]
