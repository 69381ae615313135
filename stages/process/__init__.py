"""A process per stage: exit is the only reliable way to give a GPU back."""
