"""A vector index in a folder, and its search. Imports no model library."""
