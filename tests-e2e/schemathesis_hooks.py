"""How Schemathesis logs in, and the exceptions from what it expects of every operation, each with its reason."""

import os
from typing import Any, NamedTuple

import httpx
import jwt
import schemathesis
from hypothesis import strategies as st
from schemathesis.openapi.checks import RejectedPositiveData, UnsupportedMethodResponse

LISTS = frozenset({"list_items", "list_items_v2", "list_users", "list_notifications"})
CHANGES_OF_ITEMS = frozenset(
    f"{change}_item{version}" for change in ("replace", "patch", "delete") for version in ("", "_v2")
)


class Exempt(NamedTuple):
    """Where a request of a valid form may be refused all the same, and why."""

    operations: frozenset[str]
    reason: str


REFUSED_FOR_ITS_MEANING = {
    "password_too_common": Exempt(
        frozenset({"register_user", "change_own_password", "confirm_password_reset"}),
        "No schema lists the passwords that are guessed first.",
    ),
    "code_invalid": Exempt(
        frozenset({"confirm_email", "confirm_password_reset"}),
        "Whether a mailed code is the right one is not a matter of its form.",
    ),
    "cursor_invalid": Exempt(
        LISTS | {"live_events"}, "A cursor is opaque to clients: only one that was given out is good."
    ),
    "version_conflict": Exempt(
        CHANGES_OF_ITEMS,
        "If-Match names a version that was read; a made-up one is not the current one.",
    ),
    "idempotency_key_reused": Exempt(
        frozenset({"create_item", "create_item_v2", "send_email"}),
        "The examples give one key to many payloads.",
    ),
    "method_not_allowed": Exempt(
        frozenset({"read_user", "patch_user", "end_user_sessions"}),
        "What other operations answered is tried as an id: /v1/users/token is a path of its own.",
    ),
    "unknown_topic": Exempt(
        frozenset({"live_events"}),
        "Topics are a list in one parameter, each part of which has a form of its own.",
    ),
    "invalid_request": Exempt(
        frozenset({"create_token", "revoke_token"}),
        "Which fields go with which grant_type, and that none is repeated (RFC 6749 section 5.2).",
    ),
    "invalid_grant": Exempt(
        frozenset({"create_token"}), "A wrong refresh token is 400 (RFC 6749 section 5.2)."
    ),
    "invalid_scope": Exempt(
        frozenset({"create_token"}), "A scope that the account lacks is 400 (RFC 6749 section 5.2)."
    ),
    "unsupported_grant_type": Exempt(
        frozenset({"create_token"}), "Any other grant is 400 (RFC 6749 section 5.2)."
    ),
}
"""By problem; beside those of authentication, absence and conflict, which Schemathesis expects anywhere."""

NOT_AN_ADDRESS = "value is not a valid email address"

ENDS_THE_SESSION_IN_USE = ("delete_own_account", "end_own_sessions")
"""Left out with a token, because what follows would all be 401; tried without one like all others."""

ENDS_THE_SESSION_OF = {
    "end_own_session": ("session_id", "sid", "01942a60-7b85-7000-8000-000000000000"),
    "end_user_sessions": ("user_id", "sub", str(2**63 - 1)),
    "patch_user": ("user_id", "sub", str(2**63 - 1)),
}
"""For the same reason these are pointed at somebody else where they name the session or the account in use."""

_in_use: dict[str, str] = {}
"""The claims of the token in use."""

TOKEN_LASTS = 1200
"""Seconds: a third of what the system gives its tokens, so that none ends while it is used."""

if "CONFORMANCE_EMAIL" in os.environ:

    @schemathesis.auth(refresh_interval=TOKEN_LASTS, retry_on=[])
    class LogIn:
        """The admin's tokens, however long the run takes."""

        def get(self, _case: Any, _context: Any) -> str:
            """Return a token."""
            answer = httpx.post(
                f"{os.environ['CONFORMANCE_URL']}/v1/users/token",
                data={
                    "username": os.environ["CONFORMANCE_EMAIL"],
                    "password": os.environ["CONFORMANCE_PASSWORD"],
                },
                trust_env=False,
            )
            token: str = answer.raise_for_status().json()["access_token"]
            _in_use.update(jwt.decode(token, options={"verify_signature": False}))
            return token

        def set(self, case: Any, token: str, _context: Any) -> None:
            """Use the token."""
            case.headers["Authorization"] = f"Bearer {token}"


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
def filter_failure(_context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Drop a failure that is none: the request was refused for its meaning, or before it was looked at."""
    if isinstance(failure, UnsupportedMethodResponse):
        # The gateway's table names what needs no token by path and method. All else is refused before any service is
        # asked, be it there or not.
        return not (
            response.status_code == 401
            and "Authorization" not in response.request.headers
            and response.json()["code"] == "not_authenticated"
        )
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    exempt = REFUSED_FOR_ITS_MEANING.get(problem["code"])
    operation = case.operation.definition.raw["operationId"]
    return not (exempt and operation in exempt.operations) and not _is_about_addresses(problem)


def _is_about_addresses(problem: dict[str, Any]) -> bool:
    """Say whether all that was refused are addresses like `a@b.test`: format `email` does not know reserved names."""
    errors = problem.get("errors", [])
    return bool(errors) and all(error["detail"].startswith(NOT_AN_ADDRESS) for error in errors)


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Keep the session in use."""
    operation = case.operation.definition.raw["operationId"]
    if operation in ENDS_THE_SESSION_OF and case.path_parameters:
        parameter, claim, other = ENDS_THE_SESSION_OF[operation]
        if str(case.path_parameters.get(parameter)) == str(_in_use.get(claim)):
            case.path_parameters[parameter] = other
