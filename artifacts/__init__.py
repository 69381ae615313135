"""How everything Penstock makes lies on disk; knows nothing of models, stages or Prefect."""
