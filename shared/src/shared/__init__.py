"""Mechanisms every Tollhouse service uses. No business noun lives here (see CONTRIBUTING.md, admission rule)."""
