"""Media in buckets and on the web: listed, fetched, and cached on local disk."""
