"""Follow Tollhouse's live stream: an async iterator that resumes by itself (README.md)."""

from tollhouse_live.messages import Event, Gap
from tollhouse_live.stream import LiveStream, Refused
from tollhouse_live.tokens import AccessToken, LoginFailed, Session, Tokens

__all__ = ["AccessToken", "Event", "Gap", "LiveStream", "LoginFailed", "Refused", "Session", "Tokens"]
