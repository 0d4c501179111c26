"""Publishing: what is recorded, and what is refused."""

from __future__ import annotations

import getpass
import json

from tests.cli.conftest import Cli


def test_who_published_it_is_recorded_or_left_out(
    cli: Cli, team: str, store: str
) -> None:
    words = ["actstore", "publish", store]
    code, out, _ = cli(*words, "a", "--json")
    assert (code, json.loads(out)["by"]) == (0, getpass.getuser())
    code, out, _ = cli(*words, "b", "--by", "the team", "--json")
    assert (code, json.loads(out)["by"]) == (0, "the team")
    code, out, _ = cli(*words, "c", "--anonymous", "--json")
    assert (code, json.loads(out)["by"]) == (0, None)
    code, out, _ = cli(*words, "c")
    assert out.startswith("catalog:c:latest  ")
    assert out.endswith("(it was published before)\n")
    code, _, err = cli(*words, "d", "--by", "x", "--anonymous")
    assert code == 1
    assert "--by and --anonymous: give one of them" in err
