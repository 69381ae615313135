"""Console output: lines, progress bars, tables and sizes."""
