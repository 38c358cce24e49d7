"""`operators.kit.markup` for templates: ``{% load pullwake %}``."""

import json
from typing import Any

from django import template
from django.conf import settings

from core.clock import span_of
from operators.kit import markup

register = template.Library()

for function in (
    markup.moment,
    markup.ident,
    markup.badge,
    markup.sentences,
    markup.page_of,
    markup.verb_url,
    markup.list_of,
    markup.runner_link,
    markup.entity_link,
    markup.claim_link,
):
    register.simple_tag(function)

register.filter(markup.milliseconds)
register.filter(span_of)
register.filter(markup.plain)
register.filter(markup.tone)


@register.filter
def held_for(claim: Any) -> str:
    return markup.took(claim.ended_at - claim.claimed_at)


@register.filter
def as_json(value: Any) -> str:
    return markup.plain(json.dumps(value, indent=2, ensure_ascii=False))


@register.simple_tag
def login_provider() -> str:
    """What operators may log in with besides a password; empty: nothing."""
    return settings.PULLWAKE_OIDC_NAME if settings.PULLWAKE_OIDC_ISSUER else ""


@register.simple_tag
def outcome_list(outcome: str, span: str) -> str:
    """The list of claims behind a sum: those acquired, or those that ended in this way."""
    when = {"age": span} if outcome == "acquired" else {"status": outcome, "ended": span}
    return markup.list_of("claims_consumerclaim", **when)
