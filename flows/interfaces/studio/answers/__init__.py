"""The page that shows the answers of a run, and takes what people decide on them."""
