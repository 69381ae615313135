"""Cache keys of everything a run makes, and the state of the store by these keys."""
