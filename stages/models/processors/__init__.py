"""Runs a checkpoint's processor and stores what prompts need of its output."""
