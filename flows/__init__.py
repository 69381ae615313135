"""Runs stages one after another. Its packages are layers that import only the layers below them."""
