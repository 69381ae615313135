"""Cuts a model in two, and loads and runs each half; knows neither files nor processors."""
