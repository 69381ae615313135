"""In-flight (continuous) batching: a finished sequence frees its slot; see `engine`."""
