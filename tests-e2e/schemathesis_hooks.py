"""Exceptions from what Schemathesis expects of every operation, each with its reason."""

import os
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.openapi.checks import RejectedPositiveData, UnsupportedMethodResponse

REFUSED_FOR_ITS_MEANING = {
    "password_too_common": "No schema lists the passwords that are guessed first.",
    "code_invalid": "Whether a mailed code is the right one is not a matter of its form.",
    "cursor_invalid": "A cursor is opaque to clients: only one that was given out is good.",
    "version_conflict": "If-Match names a version that was read; a made-up one is not the current one.",
    "idempotency_key_reused": "The examples give one key to many payloads.",
    "method_not_allowed": "Values of other operations are tried as ids: /v1/users/token is a path of its own.",
    "unknown_topic": "Topics are a list in one parameter, each part of which has a form of its own.",
    "invalid_request": "OAuth: which fields go with which grant_type, and that none is repeated (RFC 6749 section 5.2).",
    "invalid_grant": "OAuth: a wrong refresh token is 400 (RFC 6749 section 5.2).",
    "invalid_scope": "OAuth: a scope that the account lacks is 400 (RFC 6749 section 5.2).",
    "unsupported_grant_type": "OAuth: any other grant is 400 (RFC 6749 section 5.2).",
}
"""Problems that requests of a valid form may meet, beside those of authentication, absence and conflict."""

NOT_AN_ADDRESS = "value is not a valid email address"

ENDS_THE_SESSION_IN_USE = ("delete_own_account", "end_own_sessions")
"""Left out with a token, because what follows would all be 401; tried without one like all others."""

ENDS_THE_SESSION_OF = {
    "end_own_session": ("session_id", "CONFORMANCE_SESSION_ID", "01942a60-7b85-7000-8000-000000000000"),
    "end_user_sessions": ("user_id", "CONFORMANCE_USER_ID", str(2**63 - 1)),
    "patch_user": ("user_id", "CONFORMANCE_USER_ID", str(2**63 - 1)),
}
"""For the same reason these are pointed at somebody else where they name the session or the account in use."""


ENTITY_TAGS = "entity-tags"
schemathesis.openapi.format(ENTITY_TAGS, st.sampled_from(["*", '"1"', '"2"', '"1", "3"']))


@schemathesis.hook
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:
    """Say how If-Match is made: from a pattern that asks for a quotation mark Schemathesis makes no good headers."""
    for item in raw_schema["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "If-Match":
                    parameter["schema"]["format"] = ENTITY_TAGS


@schemathesis.hook
def filter_failure(_context: Any, failure: Any, _case: Any, response: Any) -> bool:
    """Drop a failure that is none: the request was refused for its meaning."""
    if isinstance(failure, UnsupportedMethodResponse):
        # The gateway's table names what needs no token by path and method. All else is refused before any service is
        # asked, be it there or not.
        return not (response.status_code == 401 and response.json()["code"] == "not_authenticated")
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    return problem["code"] not in REFUSED_FOR_ITS_MEANING and not _is_about_addresses(problem)


def _is_about_addresses(problem: dict[str, Any]) -> bool:
    """Say whether all that was refused are addresses like `a@b.test`: format `email` does not know reserved names."""
    errors = problem.get("errors", [])
    return bool(errors) and all(error["detail"].startswith(NOT_AN_ADDRESS) for error in errors)


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Keep the session in use."""
    operation = case.operation.definition.raw["operationId"]
    if operation in ENDS_THE_SESSION_OF and case.path_parameters:
        parameter, variable, other = ENDS_THE_SESSION_OF[operation]
        if str(case.path_parameters.get(parameter)) == os.environ.get(variable):
            case.path_parameters[parameter] = other
