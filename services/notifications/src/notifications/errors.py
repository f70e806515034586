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
    """Mail may go to allowed domains only, unless the token has the scope notifications:send_any."""

    status = 403
    code = "recipient_not_allowed"
    title = "Recipient not allowed"


class TooManyMails(Problem):
    """The caller has sent as many mails as an hour allows."""

    status = 429
    code = "too_many_emails"
    title = "Too many e-mails"

    def __init__(self, retry_after: int) -> None:
        super().__init__("The hourly number of mails is used up.", headers={"Retry-After": str(retry_after)})


PROBLEMS: tuple[type[Problem], ...] = (NotificationNotFound, MailNotFound, RecipientNotAllowed, TooManyMails)
"""The service's part of the catalogue."""
