"""Who owns an output folder, and what of it is believed."""
