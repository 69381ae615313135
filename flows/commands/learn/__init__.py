"""Trains an adapter on a person's corrections, captions a run's media again with it, and keeps
every decision. Each round resumes after a kill."""
