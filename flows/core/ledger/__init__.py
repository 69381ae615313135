"""Cache keys of all records that a run makes, and the state of the store by these keys."""
