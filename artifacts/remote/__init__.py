"""Media in buckets and on the web: listed, fetched in ranges, and cached on local disk."""
