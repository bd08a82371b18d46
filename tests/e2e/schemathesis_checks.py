"""Checks of our own that Schemathesis runs on every answer."""

from __future__ import annotations

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.core.parameters import ParameterLocation

# Refusals of requests that follow the schema. What a bundle can reach, and which bundles there are,
# is known only when the service runs; that bytes are an image, no schema can say.
_REACH = {"budget_too_low", "cap_too_low", "unknown_model"}
_TIME = {"deadline_unreachable", "deadline_passed"}
_CONTENT = {"not_an_image", "format_not_allowed", "too_many_parts", "missing_part", "bad_multipart"}


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    """In a form, one text is no other than a list of one: it cannot be wrong by that."""
    body = case.meta and case.meta.components.get(ParameterLocation.BODY)
    return not (case.media_type == "multipart/form-data" and body and body.mode.is_negative)


@schemathesis.check
def refused_for_cause(ctx: CheckContext, response: Response, case: Case) -> None:
    """A request that follows the schema is refused only for what the schema cannot say."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    code = response.json().get("code")
    path = case.operation.path
    if path == "/classify":
        assert code in _REACH | _TIME | _CONTENT, f"refused with {code}"
    elif path == "/budget":
        above = "is above ceiling" in response.json()["error"]  # no schema compares two fields
        assert code in _REACH or above, f"refused with {code}"
    elif "{name}" in path and case.method != "GET" and not path.endswith("/infer"):
        # Models come and go: the default one stays, and none is loaded that lies elsewhere.
        assert response.status_code in (400, 404, 409) or code == "bad_bundle", f"refused: {code}"
    elif path.endswith("/infer"):
        # Also data that do not fill their shape, and more images than a setting allows.
        assert response.status_code in (400, 404, 413, 415, 504), (
            f"refused with {response.status_code}"
        )
    else:
        assert response.status_code == 404, f"refused with {response.status_code}"
        assert "{" in path, f"{path} does not exist"


@schemathesis.check
def every_answer_has_an_id(ctx: CheckContext, response: Response, case: Case) -> None:
    """Refusals too can be found in the log."""
    assert response.headers.get("x-request-id"), "no X-Request-ID"


@schemathesis.check
def every_refusal_says_why(ctx: CheckContext, response: Response, case: Case) -> None:
    """Of any status, also those that no operation documents, such as 405."""
    if response.status_code >= 400:
        keys = {"error"} if case.operation.path.startswith("/v2") else {"error", "code"}
        found = response.json()
        assert set(found) == keys, f"a refusal with {sorted(found)}"
        assert found["error"], "a refusal without a sentence"
