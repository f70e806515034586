"""The peers: how each is set up and started."""
