"""Records with a cache key: digests, packs, and the stores that hold them."""
