"""Problems that only the notifications service answers."""

from shared.errors import Problem


class NotificationNotFound(Problem):
    """The caller has no notification with this id."""

    status = 404
    code = "notification_not_found"
    title = "Notification not found"

    def __init__(self, notification_id: int) -> None:
        super().__init__(f"No notification {notification_id}.")


class MailNotFound(Problem):
    """The caller has no mail with this id."""

    status = 404
    code = "email_not_found"
    title = "E-mail not found"

    def __init__(self, job_id: int) -> None:
        super().__init__(f"No e-mail {job_id}.")


class RecipientNotAllowed(Problem):
    """Mail may go to the caller's own verified address and to allowed domains only, unless the token has the scope notifications:send_any."""

    status = 403
    code = "recipient_not_allowed"
    title = "Recipient not allowed"


class TooManyMails(Problem):
    """The caller has sent, or the recipient has got, as many mails as an hour allows."""

    status = 429
    code = "too_many_emails"
    title = "Too many e-mails"

    def __init__(self, detail: str = "The hourly number of mails is used up.", *, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class UnknownTopic(Problem):
    """There is no such topic to follow: topics are `items`, `items.<id>` and `me`."""

    status = 422
    code = "unknown_topic"
    title = "Unknown topic"

    def __init__(self) -> None:
        super().__init__("Topics are items, items.<id> and me.")


class TooManyTopics(Problem):
    """One connection follows a bounded number of topics."""

    status = 422
    code = "too_many_topics"
    title = "Too many topics"


class CursorInvalid(Problem):
    """The cursor is not one that this API gave."""

    status = 400
    code = "cursor_invalid"
    title = "Invalid cursor"


class TooManyConnections(Problem):
    """The user or the address follows the live stream by as many connections as it may, or the process is full."""

    status = 429
    code = "too_many_connections"
    title = "Too many connections"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "10"})


class StreamUnavailable(Problem):
    """The event stream cannot be read just now. Try again with the same cursor."""

    status = 503
    code = "stream_unavailable"
    title = "Event stream unavailable"

    def __init__(self) -> None:
        super().__init__("The event stream is not there yet.", headers={"Retry-After": "1"})


PROBLEMS: tuple[type[Problem], ...] = (
    NotificationNotFound,
    MailNotFound,
    RecipientNotAllowed,
    TooManyMails,
    UnknownTopic,
    TooManyTopics,
    CursorInvalid,
    TooManyConnections,
    StreamUnavailable,
)
"""The service's part of the catalogue."""
