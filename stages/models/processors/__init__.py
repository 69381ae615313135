"""Calls a checkpoint's processor and keeps what it says of pictures; knows no weights."""
