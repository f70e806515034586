"""The users service: accounts, access tokens and the keys that sign them."""
