"""What tests stand on: fakes, tiny models and media, and runs of the program on them."""
