"""Reads the pages' templates, which escape all that is put into them."""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

from schemas.service import ServiceRun
from trainer.service.pages import page_text
from trainer.service.pages.page_figures import sites_text, sparsity_text
from trainer.service.pages.static_files import static_address

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST_VALUE = 200  # characters of a value of a spec in a table


@cache
def environment() -> Environment:
    """Return the templates, with the filters that they use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("trainer.service.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["static"] = static_address
    templates.filters |= {
        "ago": page_text.ago_text,
        "count": page_text.count_text,
        "duration": page_text.duration_text,
        "figure": page_text.figure_text,
        "last_part": last_part,
        "percent": page_text.share_text,
        "seconds_left": page_text.seconds_left,
        "share_done": page_text.share_done,
        "shell": shlex.quote,
        "short": page_text.short_count,
        "sites": sites_text,
        "size": page_text.size_text,
        "sparsity": sparsity_text,
        "state_note": state_note,
        "time": page_text.time_text,
        "took": took,
        "value": value_text,
        "yaml": page_text.yaml_text,
    }
    return templates


def rendered(template: str, **values: Any) -> str:
    """Return a template with values put in."""
    return environment().get_template(template).render(**values)


def last_part(url: str) -> str:
    """Return the last part of a URL: the name of the folder that it leads to."""
    return url.rstrip("/").rpartition("/")[2] or url


def took(run: ServiceRun) -> float | None:
    """Return the seconds from a run's beginning to its end, or to now."""
    return page_text.seconds_between(run.started, run.ended)


def value_text(value: Any) -> str:
    """Return a value of a spec as a table shows it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "–" if value is None else text
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def state_note(run: ServiceRun) -> str:
    """Return what there is to say of a run's state, in a few words."""
    left = page_text.seconds_left(run)
    took_text = page_text.duration_text(took(run))
    match run.state:
        case "queued":
            return run.waits_for or "waits for a slot"
        case "running" if left is not None:
            return f"{page_text.duration_text(left)} left on {run.slot or 'its slot'}"
        case "running":
            return f"starting on {run.slot or 'its slot'}"
        case "completed":
            return f"took {took_text}"
        case "failed":
            return run.error or "failed"
        case _:
            return "cancelled; it goes on where it was once it is resumed"
