"""The notifications service: stored notifications, the live stream and mail."""
