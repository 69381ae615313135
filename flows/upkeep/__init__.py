"""The store looked after: features rebuilt, what is old removed."""
