"""Media that lie in buckets and on the web: found, fetched by ranges, and kept here for a while."""
