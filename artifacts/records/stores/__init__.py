"""The `Store` protocol and its implementations: a folder and a bucket."""
