"""Puts on disk everything that Penstock makes; knows nothing of models, stages or Prefect."""
