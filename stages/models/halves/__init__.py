"""A model cut in two: where, and how each half is loaded and run; knows neither files nor
processors."""
